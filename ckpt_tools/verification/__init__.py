"""``ckpt verify`` on this side of the process that builds the model: what is asked, and what came of it.

Nothing here imports torch or the user's class; `ckpt_tools.runtime.verify` does, in a process of its own.
"""
