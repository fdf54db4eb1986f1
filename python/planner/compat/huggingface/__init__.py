"""Our planner and our dispatch inside of the loading code of transformers, PEFT and diffusers."""
