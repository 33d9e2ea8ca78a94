"""A sweep's answer: runs → configurations → statistics → report → table, CSV, Markdown and one HTML page."""
