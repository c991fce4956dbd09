"""The functions of this package inside other frameworks: `bridges.torch`, `bridges.jax`, `bridges.transformers`,
`bridges.onnx`.

Each is imported by its name and needs that framework; gradients are still those derived by hand.
"""
