"""``ckpt export`` and ``ckpt check-onnx`` on this side of the pipe: what is asked, what came of it, how it is told.

The work is done by `ckpt_tools.runtime.onnx` in a process of its own, as for ``ckpt verify``.
"""
