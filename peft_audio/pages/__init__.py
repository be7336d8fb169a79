"""HTML building blocks and model cards as Jinja2 templates."""
