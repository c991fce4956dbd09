// ReLU, GELU, SiLU, tanh and sigmoid, forward and backward: one pass over memory. References: ops/activations.py and
// ops/gelu.py. Parallel over the numbers, 32 bytes of them as computed to a thread. Shared: none.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;

// Beyond these sizes the gates are 0 or 1 to the last bit; x is held there, so that no infinity meets a 0.
constexpr double GELU_REACH = 40, SILU_REACH = 1000;
constexpr double CUBIC = 0.044715, STEEPNESS = 0.7978845608028654;  // sqrt(2 / pi)
constexpr double HALF_ROOT = 0.7071067811865476, DENSITY = 0.3989422804014327;

template <class F> inline void map(Global<const Stored> x, Global<Stored> out, int64 count, F f) {
  Real v[COUNT<Stored>];
  for (int64 start = blockIdx.x * span<Stored>(); start < count; start += gridDim.x * span<Stored>()) {
    read<Stored>(x, start, count, v, Real(0));
    UNROLL for (int e = 0; e < COUNT<Stored>; e++) v[e] = f(v[e]);
    write<Stored>(out, start, count, v);
  }
}

template <class F>
inline void map(Global<const Stored> dout, Global<const Stored> x, Global<Stored> dx, int64 count, F f) {
  Real d[COUNT<Stored>], v[COUNT<Stored>];
  for (int64 start = blockIdx.x * span<Stored>(); start < count; start += gridDim.x * span<Stored>()) {
    read<Stored>(dout, start, count, d, Real(0));
    read<Stored>(x, start, count, v, Real(0));
    UNROLL for (int e = 0; e < COUNT<Stored>; e++) d[e] = f(d[e], v[e]);
    write<Stored>(dx, start, count, d);
  }
}

inline Real held_above(Real x, Real bound) { return x < -bound ? -bound : x; }
inline Real held(Real x, Real bound) { return x > bound ? bound : held_above(x, bound); }
inline Real logistic(Real x) {
  const Real small = exp(-fabs(x));
  return (x >= 0 ? Real(1) : small) / (1 + small);
}
inline Real normal_gate(Real x) { return Real(0.5) * erfc(-x * Real(HALF_ROOT)); }
inline Real tanh_gate(Real x) { return logistic(Real(2 * STEEPNESS) * (x + Real(CUBIC) * x * x * x)); }

#define FORWARD(name, formula)                                                                        \
  KERNEL(256) name(Global<const Stored> x, Global<Stored> out, int64 count) {                         \
    map(x, out, count, [](Real v) -> Real { formula });                                               \
  }                                                                                                   \
  EXPORT(name)
#define BACKWARD(name, formula)                                                                       \
  KERNEL(256) name(Global<const Stored> dout, Global<const Stored> x, Global<Stored> dx, int64 count) { \
    map(dout, x, dx, count, [](Real d, Real v) -> Real { formula });                                  \
  }                                                                                                   \
  EXPORT(name)

// v is x, and in the backward of ReLU, tanh and sigmoid the output.
FORWARD(relu_forward, return v < 0 ? Real(0) : v;)
BACKWARD(relu_backward, return v > 0 ? d : Real(0);)
FORWARD(tanh_forward, return tanh(v);)
BACKWARD(tanh_backward, return (1 - v * v) * d;)
FORWARD(sigmoid_forward, return logistic(v);)
BACKWARD(sigmoid_backward, return v * (1 - v) * d;)
FORWARD(silu_forward, v = held_above(v, SILU_REACH); return v * logistic(v);)
BACKWARD(silu_backward, v = held(v, SILU_REACH); const Real s = logistic(v); return s * (1 + v * (1 - s)) * d;)
FORWARD(gelu_forward, return held_above(v, GELU_REACH) * normal_gate(held(v, GELU_REACH));)
BACKWARD(gelu_backward, v = held(v, GELU_REACH);
         return d * (normal_gate(v) + v * exp(Real(-0.5) * v * v) * Real(DENSITY));)
FORWARD(gelu_tanh_forward, return held_above(v, GELU_REACH) * tanh_gate(held(v, GELU_REACH));)
BACKWARD(gelu_tanh_backward, v = held(v, GELU_REACH); const Real gate = tanh_gate(v);
         const Real slope = Real(2 * STEEPNESS) * (1 + Real(3 * CUBIC) * v * v);
         return d * (gate + v * gate * (1 - gate) * slope);)
#undef FORWARD
#undef BACKWARD
