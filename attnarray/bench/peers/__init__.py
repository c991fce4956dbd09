"""The peers of `attnarray bench`, one file each. A new one is a file with a `Peer` and its line here."""

from attnarray.bench.peers import jax_jit, keras_ops, naive, onnx_runtime, ours, torch_eager, torch_sdpa
from attnarray.bench.peers.peer import Call, Peer, Problem, Unsupported

# In the order of the tables and pictures.
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        ours.AUTO,
        ours.REFERENCE,
        naive.PEER,
        torch_sdpa.PEER,
        torch_eager.PEER,
        jax_jit.PEER,
        keras_ops.PEER,
        onnx_runtime.PEER,
    )
}

__all__ = ["PEERS", "Call", "Peer", "Problem", "Unsupported"]
