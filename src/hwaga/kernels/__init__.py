"""The operations that networks are made of besides matrix products.

Each is a function over tensors. ``reference`` holds them in plain torch: the definition that any faster version is held to.
"""
