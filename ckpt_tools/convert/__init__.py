"""Moving weights into another file, bit for bit: what goes where (plan), writing it (write_*), proving it (prove)."""
