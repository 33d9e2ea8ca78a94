"""Token Importance Dropout: which input tokens may a language model be denied while it trains?"""

__version__ = "0.1.0"
