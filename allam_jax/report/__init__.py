"""Reports: Markdown, tables, and the style of figures."""
