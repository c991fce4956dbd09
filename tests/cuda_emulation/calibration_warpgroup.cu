// Products by a warpgroup, for sm_90a: as calibration.cu, run by emulation in the tests, and on a GPU by gpu_check.
#include "warpgroup.cuh"

// d (64 x KEYS) = q (64 x DIM) times the rows of k (KEYS x DIM), and e (64 x DIM) = d in 16 bits times k itself.
template <int KEYS, int DIM>
inline void multiply_by_group(Global<const Stored> q, Global<const Stored> k, Global<float> d, Global<float> e) {
  using Queries = PanelTile<Stored, 64, DIM>;
  using Keys = PanelTile<Stored, KEYS, DIM>;
  const Queries queries = {0};
  const Keys keys = {Queries::BYTES};
  fill<128>(queries, q, DIM, 64, DIM);
  fill<128>(keys, k, DIM, KEYS, DIM);
  commit_copies();
  wait_copies<0>();
  show_products();
  sync_threads();
  float products[KEYS / 8][4] = {}, sums[DIM / 8][4] = {};
  Weights<Stored, KEYS / 16> weights;
  hold(products);
  begin_products();
  multiply_rows(products, queries, 0, keys);
  commit_products();
  wait_products<0>();
  hold(products);
  weights.pack(products);
  weights.hold(), hold(sums);
  begin_products();
  multiply_weights(sums, weights, keys, true);
  commit_products();
  wait_products<0>();
  hold(sums);
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  UNROLL for (int part = 0; part < KEYS / 8; part++)
    UNROLL for (int n = 0; n < 4; n++) d[(row + n / 2 * 8) * KEYS + 8 * part + column + n % 2] = products[part][n];
  UNROLL for (int part = 0; part < DIM / 8; part++)
    UNROLL for (int n = 0; n < 4; n++) e[(row + n / 2 * 8) * DIM + 8 * part + column + n % 2] = sums[part][n];
}

KERNEL(128) grouped_64_by_128(Global<const Stored> q, Global<const Stored> k, Global<float> d, Global<float> e) {
  multiply_by_group<64, 128>(q, k, d, e);
}
EXPORT(grouped_64_by_128)

KERNEL(128) grouped_128_by_64(Global<const Stored> q, Global<const Stored> k, Global<float> d, Global<float> e) {
  multiply_by_group<128, 64>(q, k, d, e);
}
EXPORT(grouped_128_by_64)

KERNEL(128) grouped_128_by_128(Global<const Stored> q, Global<const Stored> k, Global<float> d, Global<float> e) {
  multiply_by_group<128, 128>(q, k, d, e);
}
EXPORT(grouped_128_by_128)
