"""The wording of every check on shapes, dtypes and values: what was given, what was expected, what to do."""

from __future__ import annotations

import math
import numbers
from typing import Any, Literal, get_args

import numpy as np

from attnarray.backend import (
    Array,
    Namespace,
    device_of,
    dtype_name,
    index_dtype,
    library_name,
    namespace_of,
    namespace_of_cupy,
    to_numpy,
)
from attnarray.numpy_arrays import check_plain, plain

FLOATS = ("float16", "bfloat16", "float32", "float64")
LayoutName = Literal["BHTD", "BTHD"]
LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)
_HINTS = dict.fromkeys([list, tuple, int, float], " attnarray.asarray makes one from numbers and lists of numbers.")


def is_array(value: Any) -> bool:
    """Whether `value` has a shape and a dtype, as every array does."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type)


def shown(value: Any) -> str:
    """`value` in a few words on one line, however large it is."""
    if is_array(value) and tuple(value.shape) != ():
        return f"an array of shape {tuple(value.shape)} and dtype {dtype_name(value.dtype)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def require_array(name: str, value: Any, expected: str = "an array") -> None:
    """Check that `value` is an array that array-api-compat knows, without overridden arithmetic."""
    import array_api_compat

    check_plain(value, name)
    if isinstance(value, type) or not array_api_compat.is_array_api_obj(value):
        raise TypeError(f"`{name}` {_kind(value)}, expected {expected}.{_HINTS.get(type(value), '')}")


def _kind(value: Any) -> str:
    if value is None:
        return "is None"
    return f"is the class {value.__name__}" if isinstance(value, type) else f"has type {type(value).__name__}"


def required(**arrays: Array | None) -> None:
    """Check that all `arrays` are given."""
    for name, given in arrays.items():
        if given is None:
            require_array(name, given)


def namespace(**arrays: Array | None) -> Namespace:
    """`namespace_of` the given arrays, with errors that name the argument; `None` entries are skipped."""
    for given in arrays.values():
        if given is not None and type(given) is not np.ndarray:
            return _namespace_of_others({name: a for name, a in arrays.items() if a is not None})
    return np


def _namespace_of_others(arrays: dict[str, Any]) -> Namespace:
    xp = namespace_of_cupy(arrays.values())
    if xp is not None:
        return xp
    for name, given in arrays.items():
        require_array(name, given)
    libraries = {name: library_name(given) for name, given in arrays.items()}
    if len(set(libraries.values())) > 1:
        listed = ", ".join(f"`{name}` {library}" for name, library in libraries.items())
        raise TypeError(
            f"The arrays come from different libraries: {listed}. Bring them to one library first, for example with "
            "attnarray.to_numpy(x), or with attnarray.asarray(x) within attnarray.use_backend(...)."
        )
    return namespace_of(*arrays.values())


def shapes(**arrays: Array | None) -> str:
    """ "Shapes: query (2, 8, 5, 64), key (2, 8, 7, 32)." for the end of a message."""
    return "Shapes: " + ", ".join(f"{n} {tuple(a.shape)}" for n, a in arrays.items() if a is not None) + "."


def floating(**arrays: Array | None) -> str:
    """Check that all given arrays have one floating dtype; return its name. `None` entries are skipped."""
    names = {n: dtype_name(a.dtype) for n, a in arrays.items() if a is not None}
    distinct = set(names.values())
    if len(distinct) == 1 and distinct.issubset(FLOATS):
        return next(iter(distinct))
    if not names:
        required(**arrays)
    for n, dtype in names.items():
        if dtype not in FLOATS:
            convert = f'Convert it first, for example with attnarray.asarray({n}, dtype="float32").'
            hint = "Give a boolean mask as `attn_mask`." if (n, dtype) == ("bias", "bool") else convert
            raise TypeError(f"`{n}` has dtype {dtype}, expected one of {', '.join(FLOATS)}. {hint}")
    listed = ", ".join(f"{n} {dtype}" for n, dtype in names.items())
    raise TypeError(f"The arrays have different dtypes: {listed}. Bring them to one dtype first.")


def cotangent(dout: Array, expected: tuple[int, ...], like: Array) -> Namespace:
    """Check that `dout` has the shape of the output and the library and dtype of `like`; return their namespace."""
    xp = namespace(dout=dout, input=like)
    shape("dout", dout, expected, "the shape of the output")
    floating(dout=dout, input=like)
    return xp


def boolean(name: str, array: Array) -> None:
    """Check that `array` is a boolean array."""
    if not is_array(array):
        require_array(name, array, "a boolean array")
    check_plain(array, name)
    if dtype_name(array.dtype) != "bool":
        raise TypeError(
            f"`{name}` has dtype {dtype_name(array.dtype)}, expected bool (True = keep). "
            f"Write it as a comparison, for example {name} != 0."
        )


def integer_dtype(name: str, array: Array) -> str:
    """Check for an array of integers; return the name of its dtype."""
    if not is_array(array):
        require_array(name, array, "an array of integers")
    check_plain(array, name)
    dtype = dtype_name(array.dtype)
    if not dtype.startswith(("int", "uint")):
        raise TypeError(f"`{name}` has dtype {dtype}, expected an integer dtype such as int64.")
    return dtype


def integer(name: str, array: Array) -> Array:
    """Check for an array of integers; return it in the library's index dtype, which holds sums and differences."""
    dtype, xp = integer_dtype(name, array), namespace_of(array)
    wide = index_dtype(xp, array)
    if dtype == dtype_name(wide):
        return array
    if dtype == f"u{dtype_name(wide)}" and math.prod(array.shape):  # large numbers would become negative
        largest, limit = int(to_numpy(array).max()), int(xp.iinfo(wide).max)
        if largest > limit:
            raise ValueError(
                f"`{name}` holds {largest}, expected integers up to {limit}, which {dtype_name(wide)} holds: "
                "renumber them, or subtract a common offset."
            )
    return xp.astype(xp.asarray(array), wide)


def shape(name: str, array: Array, expected: tuple[int, ...], because: str) -> None:
    """Check the exact shape of `array`; `because` says where the expectation comes from."""
    if not is_array(array):
        require_array(name, array, f"an array of shape {expected}")
    if tuple(array.shape) != expected:
        raise ValueError(f"`{name}` has shape {tuple(array.shape)}, expected {expected}: {because}.")


def broadcasts(name: str, array: Array, target: tuple[int, ...], axes: str) -> None:
    """Check that `array` broadcasts, right-aligned, to `target`, whose axes are described by `axes`."""
    given = tuple(array.shape)
    fits = len(given) <= len(target) and all(
        a in (1, b) for a, b in zip(reversed(given), reversed(target), strict=False)
    )
    if not fits:
        of_keys = len(target) == 4 and given == (target[0], target[3])
        raise ValueError(
            f"`{name}` has shape {given}, which does not broadcast to {axes} = {target}. Each size, counted from the "
            f"right, must be 1 or equal.{f' Give (B, S) as {name}[:, None, None, :].' if of_keys else ''}"
        )


def real(value: Any) -> float:
    """A real number as a float; NaN for anything else, so that every comparison with it fails."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def probability(name: str, value: float) -> float:
    """Check 0 <= value <= 1."""
    if not 0 <= real(value) <= 1:
        raise ValueError(f"`{name}` is {shown(value)}, expected a probability from 0 to 1.")
    return float(value)


def positive(name: str, value: float) -> float:
    """Check for a finite number above 0."""
    if not 0 < real(value) < math.inf:
        raise ValueError(f"`{name}` is {shown(value)}, expected a finite number above 0.")
    return float(value)


def not_negative(name: str, value: float) -> float:
    """Check for a finite number >= 0."""
    if not 0 <= real(value) < math.inf:
        raise ValueError(f"`{name}` is {shown(value)}, expected a finite number >= 0.")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """Check for True or False; 1 and 0 pass too."""
    if value is True or value is False:
        return value
    if not isinstance(value, int | np.bool_) or value not in (0, 1):
        raise TypeError(f"`{name}` is {shown(value)}, expected True or False.")
    return bool(value)


def integral(value: Any) -> int | None:
    """An integer of any kind but bool as an int; None for anything else."""
    if type(value) is int:
        return value
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def whole(name: str, value: Any, lowest: int, highest: int, meaning: str) -> int:
    """Check for an integer from `lowest` to `highest`; `meaning` says what it counts."""
    number = integral(value)
    if number is None or not lowest <= number <= highest:
        small = number is None or number < lowest
        limits = f" >= {lowest}" if small else f" from {lowest} to {highest}"
        raise ValueError(f"`{name}` is {shown(value)}, expected an integer{limits}: {meaning}.")
    return number


def integers(name: str, value: Any) -> int | Array:
    """Check for an integer, a nested list of integers or an array of them; a list becomes a NumPy array."""
    number = integral(value)
    if number is not None:
        return number
    if is_array(value) and not isinstance(value, np.generic):
        return integer(name, value)
    try:
        array = plain(value if isinstance(value, list | tuple) else None)
    except ValueError:  # lists of different lengths
        array = np.asarray(None)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"`{name}` is {shown(value)}, expected an integer or an array of integers.")
    return integer(name, array if array.size else array.astype(np.int64))


def plain_fields(instance: Any) -> None:
    """Turn the NumPy scalars among the fields of a frozen dataclass into Python's numbers, which do not overflow."""
    for name, value in vars(instance).items():
        if isinstance(value, np.generic):
            object.__setattr__(instance, name, value.item())


def within(name: str, array: Array, lowest: int, highest: int, meaning: str) -> Array:
    """Check that all integers of `array` are from `lowest` to `highest`, as `whole` does for one."""
    xp = namespace_of(array)
    if math.prod(array.shape) and bool(xp.any((array < lowest) | (array > highest))):
        raise ValueError(
            f"`{name}` goes from {int(xp.min(array))} to {int(xp.max(array))}, expected integers from {lowest} to "
            f"{highest}: {meaning}."
        )
    return array


def same_device(name: str, value: int | Array, like_name: str, like: Array) -> int | Array:
    """Return integers on the library and device of `like`: NumPy arrays are moved, other libraries must be the same."""
    if isinstance(value, int):
        return value
    if library_name(value) == "numpy" != library_name(like):
        return namespace_of(like).asarray(value, device=device_of(like))
    namespace(**{like_name: like, name: value})
    return value


def context(name: str, value: Any, *expected: type) -> None:
    """Check for the context, of one of the types expected, that a forward pass returned."""
    if not isinstance(value, expected):
        order = " The order is bwd(dout, ctx)." if name == "ctx" and is_array(value) else ""
        kinds = " or ".join(kind.__name__ for kind in expected)
        raise TypeError(f"`{name}` is {shown(value)}, expected the {kinds} that the forward pass returned.{order}")


def context_parallel(value: Any) -> None:
    """Check that the option `context_parallel` divides sequences."""
    if value is not None and not hasattr(value, "positions"):
        raise TypeError(f"`context_parallel` is {shown(value)}, expected attnarray.distributed.ContextParallel(comm).")


def axis(name: str, value: int, ndim: int) -> int:
    """Check that `value` names one of `ndim` axes; return it counted from 0."""
    if not isinstance(value, numbers.Integral) or not -ndim <= int(value) < ndim:
        expected = f"{-ndim} to {ndim - 1}" if ndim else "at least one axis"
        raise ValueError(f"`{name}` is {shown(value)}, but the array has {ndim} axes: expected {expected}.")
    return int(value) % ndim


def choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Check that `value` is one of the known choices."""
    try:
        known = value in choices
    except (TypeError, ValueError, RuntimeError):  # an array, whose comparison is not a bool
        known = False
    if not known:
        raise ValueError(f"`{name}` is {shown(value)}, expected one of {', '.join(map(repr, choices))}.")
