"""The version of this package, for outputs to name: asking its installed metadata takes longer than reading a header."""

VERSION = "0.1.0"
