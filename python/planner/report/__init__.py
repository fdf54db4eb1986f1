"""Pictures of a plan: for a terminal, `planner.report.terminal`; as one HTML file, `planner.report.html`."""
