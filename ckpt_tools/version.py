"""The version of this package, for outputs to name: to ask its installed metadata takes longer than a header does."""

VERSION = "0.1.0"
