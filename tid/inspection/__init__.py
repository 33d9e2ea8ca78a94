"""What is dropped: the marks that scorers put on a text, figures over them, and how both are shown."""
