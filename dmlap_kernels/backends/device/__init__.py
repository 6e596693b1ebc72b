"""What the GPU backends share: everything around the kernels, in plain PyTorch, O(B * D) at most.

Nothing here waits for the device, and no shape depends on data (class scores excepted).
"""
