"""The one kind of error that data and tokenizer raise for users."""


class DataError(RuntimeError):
    """A problem with data or tokenizer that the user can mend; the message says how."""
