"""Functions along rows: softmax, norms, activations, losses, optimizer steps."""
