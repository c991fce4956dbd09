"""The test of attnarray/x/y.py is tests/x/test_y.py; every module has one, or a line in a table with its test."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.support.paths import ROOT, TESTS

PACKAGE = ROOT / "attnarray"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")

# Modules that are tested elsewhere: where (* is the module's name), and why. The first matching line is used.
ELSEWHERE = """
__main__.py                         tools/test_cli_process.py                it starts a process
cli.py                              tools/test_cli.py                        a command
checks.py                           contract/test_bad_input.py               its messages, for all functions
check*.py                           tools/test_cli.py                        `attnarray check`
info*.py                            tools/test_info.py                       `attnarray info`
console.py                          tools/test_console.py                    what commands print
tables.py                           tools/test_tables.py                     what commands print
demo/dates.py                       tools/test_demo_data.py                  `attnarray demo`
demo/picture.py                     tools/test_demo_data.py                  `attnarray demo`
demo/*                              tools/test_demo_mechanisms.py            `attnarray demo`, with every mechanism
bench/peers/*                       tools/test_bench_cases.py                each peer on every case that it claims
bench/plots/*                       tools/test_bench_results.py              pictures of one run
bench/*                             tools/test_bench_*.py                    `attnarray bench`
bench/catalog.py                    tools/test_bench_cases.py                the cases that there are
bench/se*.py                        tools/test_bench_command.py              the arguments and the order of a run
bench/listing.py                    tools/test_bench_command.py              `attnarray bench --list`
bench/re*.py                        tools/test_bench_results.py              the file and the report of one run
bench/markdown.py                   tools/test_bench_results.py              the report of one run
bench/*                             tools/test_bench_instrument.py           how the benchmark measures
learn/exercises/*                   learn/test_course.py                     data: texts, solutions, mistakes
learn/actions.py                    learn/test_command.py                    what the command does
learn/calls.py                      learn/test_grading.py                    the calls of one grading
learn/report.py                     learn/test_grading.py                    the result of one grading
learn/exercise.py                   learn/test_course.py                     what all exercises have
learn/worker.py                     learn/test_process.py                    the other end of that process
cases/*                             contract/test_contract.py                data: the calls that it makes
triples.py                          test_gradient_check.py                   whose `vjp` calls them
memory_layout.py                    test_gradient_check_layouts.py           gradcheck alone uses it
numpy_arrays.py                     contract/test_array_kinds.py             a rule for all functions
attention/composed/attentional_hidden_state.py  attention/test_scaled.py  a small function beside another
attention/dot_product/heads.py      layers/test_multi_head_options.py        the options of multi-head attention
attention/dot_product/latent.py     layers/test_latent.py                    the function of that layer
attention/positional/contextual.py  attention/test_learned_biases.py         learned positions, too
attention/selection/sigmoid.py      attention/test_learned_biases.py         the engine with a normalizer
attention/composed/differential.py  layers/test_differential.py              the function of that layer
attention/dot_product/partial.py    attention/test_scaled_dot_product_properties.py a part of that function
attention/selection/estimators.py   attention/test_hard_estimators.py        the estimators of hard attention
attention/selection/reinforce.py    attention/test_hard_estimators.py        an estimator of hard attention
attention/selection/top_k.py        attention/test_hard.py                   an estimator of hard attention
attention/positional/local_*        attention/test_local.py                  parts of one mechanism
attention/spatial/axes.py           attention/test_neighborhood.py           what functions of grids share
attention/*.py                      contract/test_contract.py                what all mechanisms share
ops/correlate.py                    ops/test_conv1d.py                       what it is made of
ops/windows.py                      ops/test_conv2d.py                       what it is made of
ops/entmax.py                       ops/test_sparsemax.py                    sparsemax is entmax of alpha = 2
ops/gelu.py                         ops/test_activations.py                  an activation in a file of its own
ops/softmax.py                      contract/test_bad_input.py               its messages
ops/dropout.py                      test_random.py                           the numbers that it draws
ops/gru.py                          ops/test_recurrence.py                   all of ops/recurrence.py
ops/lstm*.py                        ops/test_recurrence.py                   all of ops/recurrence.py
ops/rnn.py                          ops/test_recurrence.py                   all of ops/recurrence.py
layers/*                            attention/test_*.py                      a layer beside its function
layers/bahdanau.py                  attention/test_additive.py               a layer beside its function
layers/luong.py                     attention/test_multiplicative.py         a layer beside its function
layers/memory.py                    models/test_transformer_xl.py            the memory of that model
layers/cache.py                     layers/test_layer_steps.py               what layers keep between steps
layers/checking.py                  layers/test_layer_input.py               what layers say of wrong input
layers/initial.py                   test_random.py                           the numbers that it draws
layers/mixture_of_experts.py        layers/test_block.py                     what blocks are made of
layers/linear_gates.py              layers/test_linear_attention.py          the gates of that layer
layers/embedding.py                 layers/test_block.py                     what blocks are made of
layers/feed_forward.py              layers/test_block.py                     what blocks are made of
layers/norm.py                      layers/test_block.py                     what blocks are made of
layers/residual.py                  layers/test_block.py                     what blocks are made of
hooks.py                            interpret/test_states.py                 where both are used
interpret/contexts.py               interpret/test_statistics.py             the contexts of models
models/*.py                         models/test_every_model.py               what all models share
checkpoints/*                       checkpoints/test_pretrained.py           parts of reading and writing a folder
bridges/tensors.py                  bridges/test_torch.py                    how it reads tensors
bridges/torch_*.py                  bridges/test_torch.py                    its parts
bridges/onnx_*.py                   bridges/test_onnx.py                     its parts
distributed/checkpoint.py           distributed/test_training.py             what training saves
distributed/dask/*.py               distributed/dask/test_scaled_dot_product.py parts of its graph
distributed/exchange.py             distributed/test_all_to_all.py           how heads are exchanged
distributed/grid.py                 distributed/test_all_to_all.py           where it is used
distributed/problem.py              distributed/test_ring.py                 what ranks must give alike
distributed/t[ir]*.py                distributed/test_ring.py                 parts of ring attention
kernels/cuda/additive.py            kernels/cuda/test_masked_softmax.py             scores of attention
kernels/cuda/attention_*.py         kernels/cuda/test_attention_tensor_cores.py parts of one kernel
kernels/cuda/cublas.py              kernels/cuda/test_products.py            it multiplies through it
kernels/cuda/halves.py              kernels/cuda/test_attention_wgmma.py     they alone use it
kernels/cuda/arrays.py              kernels/cuda/test_loader.py              how kernels are launched
kernels/cuda/cache.py               kernels/cuda/test_loader.py              how kernels are compiled
kernels/cuda/grid.py                kernels/cuda/test_loader.py              how kernels are launched
kernels/cuda/nvrtc.py               kernels/cuda/test_loader.py              how kernels are compiled
kernels/cuda/*                      kernels/cuda/test_rows.py                kernels along rows, all called alike
kernels/numba/graph/*               kernels/numba/test_segments.py           edges are sorted into segments
kernels/numba/vector/*              kernels/numba/test_attention.py          what its kernels are made of
kernels/numba/runtime/team_code.py  kernels/numba/test_team.py               the code of its threads
kernels/numba/runtime/cpus.py       kernels/numba/test_threads.py            how many threads there are
kernels/numba/runtime/*             kernels/numba/test_safety.py             how kernels are compiled and run
"""
ROWS = [tuple(line.split(None, 2)) for line in ELSEWHERE.strip().splitlines()]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def own_tests(path: Path) -> list[Path]:
    """In the deepest folder that the tests have, named after the module or a package that it is in."""
    names, folder = list(path.relative_to(PACKAGE).with_suffix("").parts), TESTS
    while len(names) > 1 and (folder / names[0]).is_dir():
        folder /= names.pop(0)
    patterns = [pattern for name in names for pattern in (f"test_{name}.py", f"test_{name}_*.py")]
    return [test for pattern in patterns for test in folder.glob(pattern)]


def row_of(path: Path) -> tuple[str, ...] | None:
    """The line of the table for a module that has no test of its name."""
    parts = path.relative_to(PACKAGE).parts
    for row in ROWS:
        pattern = row[0].split("/")
        fits = len(pattern) == len(parts) and all(map(fnmatch, parts, pattern))
        if fits and (TESTS / row[1].replace("*", path.stem)).is_file():
            return row
    return None


UNNAMED = [path for path in MODULES if not own_tests(path)]


@pytest.mark.parametrize("path", UNNAMED, ids=name_of)
def test_every_module_has_a_test(path: Path) -> None:
    assert row_of(path) is not None, (
        f"attnarray/{name_of(path)} has no test of its name: write it, or say in ELSEWHERE of {Path(__file__).name} "
        "where it is tested and why"
    )


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_line_is_needed(row: tuple[str, ...]) -> None:
    assert row in map(row_of, UNNAMED), f"take the line of {row[0]} out: all its modules have a test of their name"
