"""The losses in Python, and everything around pairs of `torch` and the GPU backends: O(B * D).

Nothing here waits for the device, and no shape depends on data (class scores excepted).
"""
