// ReLU, GELU, SiLU, tanh and sigmoid, forward and backward: one pass over memory. References: ops/activations.py and
// ops/gelu.py. Parallel over the numbers, 32 bytes of them as stored to a thread. Shared: none.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;
constexpr int N = HELD_TWO<Stored>;

// Beyond these sizes the gates are 0 or 1 to the last bit; x is clipped there, so that no infinity is multiplied by 0.
constexpr double GELU_REACH = 40, SILU_REACH = 1000;
constexpr double CUBIC = 0.044715, STEEPNESS = 0.7978845608028654;  // sqrt(2 / pi)
constexpr double HALF_ROOT = 0.7071067811865476, DENSITY = 0.3989422804014327;

template <class F> inline void map(Global<const Stored> x, Global<Stored> out, int64 count, F f) {
  map_chunks<Stored, N>(x, out, count, [f](Real (&v)[CHUNK<Stored>], int64) {
    UNROLL for (int e = 0; e < CHUNK<Stored>; e++) v[e] = f(v[e]);
  });
}

template <class F>
inline void map(Global<const Stored> dout, Global<const Stored> x, Global<Stored> dx, int64 count, F f) {
  Real d[N], v[N];
  for (int64 start = blockIdx.x * span<Stored, N>(); start < count; start += gridDim.x * span<Stored, N>()) {
    read<Stored>(dout, start, count, d, Real(0));
    read<Stored>(x, start, count, v, Real(0));
    UNROLL for (int e = 0; e < N; e++) d[e] = f(d[e], v[e]);
    write<Stored>(dx, start, count, d);
  }
}

inline Real clip_below(Real x, Real bound) { return x < -bound ? -bound : x; }
inline Real clip(Real x, Real bound) { return x > bound ? bound : clip_below(x, bound); }
inline Real logistic(Real x) {
  const Real small = exponential(-fabs(x));
  return (x >= 0 ? Real(1) : small) * reciprocal(1 + small);
}

// The normal distribution function at x, and the density without the factor 1 / sqrt(2 pi).
struct Normal { Real below, density; };
inline Normal normal(double x) { return {Real(0.5 * erfc(-x * HALF_ROOT)), Real(exp(-0.5 * x * x))}; }
// e^{-x^2 / 2} t P(t) of t = 1 / (1 + 0.26 |x|): a minimax polynomial, relative error 3e-8 of the tail up to |x| = 15.
inline Normal normal(float x) {
  const float t = reciprocal(1 + 0.26f * fabs(x)), density = exponential(-0.5f * x * x);
  float p = 0.029960107058286667f;
  p = p * t - 0.15018706023693085f;
  p = p * t + 0.24604442715644836f;
  p = p * t - 0.1447269171476364f;
  p = p * t + 0.15665121376514435f;
  p = p * t + 0.052860043942928314f;
  p = p * t + 0.10255999118089676f;
  p = p * t + 0.103083036839962f;
  p = p * t + 0.10375513881444931f;
  const float beyond = density * (p * t);
  return {x > 0 ? 1 - beyond : beyond, density};
}
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
FORWARD(silu_forward, v = clip_below(v, SILU_REACH); return v * logistic(v);)
BACKWARD(silu_backward, v = clip(v, SILU_REACH); const Real s = logistic(v); return s * (1 + v * (1 - s)) * d;)
FORWARD(gelu_forward, return clip_below(v, GELU_REACH) * normal(clip(v, GELU_REACH)).below;)
BACKWARD(gelu_backward, v = clip(v, GELU_REACH);
         const Normal at = normal(v); return d * (at.below + v * at.density * Real(DENSITY));)
FORWARD(gelu_tanh_forward, return clip_below(v, GELU_REACH) * tanh_gate(clip(v, GELU_REACH));)
BACKWARD(gelu_tanh_backward, v = clip(v, GELU_REACH); const Real gate = tanh_gate(v);
         const Real slope = Real(2 * STEEPNESS) * (1 + Real(3 * CUBIC) * v * v);
         return d * (gate + v * gate * (1 - gate) * slope);)
#undef FORWARD
#undef BACKWARD
