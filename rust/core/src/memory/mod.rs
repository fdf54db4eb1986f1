//! What a recorded run takes: by block, for planning, and on every device of a placement.

pub mod demands;
pub mod replay;
pub mod tape;
