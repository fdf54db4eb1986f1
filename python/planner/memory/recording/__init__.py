"""Recording a forward on the meta device; loaded late, because torch's modes are classes."""
