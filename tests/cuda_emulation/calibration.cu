// One small kernel for each primitive whose meaning is a reading of the manual: run by emulation in the tests, and on a GPU by
// benchmarks/gpu_check.py, which compares the two bit by bit. `Stored` is a 16-bit type.
#include "primitives.cuh"

// d (16 x 8) = a (16 x 16) b (16 x 8) by one warp, through shared memory and load_matrices.
KERNEL(32) multiplied(Global<const Stored> a, Global<const Stored> b, Global<float> d) {
  Shared<Stored> held_a = shared<Stored>(0), held_b = shared<Stored>(512);
  const int t = threadIdx.x;
  for (int n = t; n < 256; n += 32) held_a[n] = a[n];
  for (int n = t; n < 128; n += 32) held_b[n] = b[n];
  sync_warp();
  uint32 of_a[4], of_b[4];
  load_matrices(of_a, held_a + (t % 16 * 16 + t / 16 * 8));
  load_matrices_transposed(of_b, held_b + t % 16 * 8);
  float sums[4] = {0, 0, 0, 0};
  const uint32 pair[2] = {of_b[0], of_b[1]};
  multiply_add(sums, of_a, pair, Stored());
  for (int n = 0; n < 4; n++) d[(t / 4 + n / 2 * 8) * 8 + t % 4 * 2 + n % 2] = sums[n];
}
EXPORT(multiplied)

// d (16 x 8) = a (16 x 8) b (8 x 8); the numbers come as their bits.
KERNEL(32) multiplied_tf32(Global<const uint32> a, Global<const uint32> b, Global<float> d) {
  const int t = threadIdx.x, row = t / 4, k = t % 4;
  const uint32 of_a[4] = {a[row * 8 + k], a[(row + 8) * 8 + k], a[row * 8 + k + 4], a[(row + 8) * 8 + k + 4]};
  const uint32 of_b[2] = {b[k * 8 + row], b[(k + 4) * 8 + row]};
  float sums[4] = {0, 0, 0, 0};
  multiply_add_tf32(sums, of_a, of_b);
  for (int n = 0; n < 4; n++) d[(row + n / 2 * 8) * 8 + k * 2 + n % 2] = sums[n];
}
EXPORT(multiplied_tf32)

KERNEL(32) converted(Global<const float> x, Global<Stored> rounded, Global<float> back, int64 count) {
  for (int64 i = threadIdx.x; i < count; i += 32) {
    Stored number;
    narrow(x[i], number);
    rounded[i] = number;
    back[i] = wide(number);
  }
}
EXPORT(converted)

// Four pieces of 64 numbers, each reversed, through two stages of asynchronous copies.
KERNEL(64) streamed(Global<const float> x, Global<float> out) {
  Shared<float> held = shared<float>(0);
  const int t = threadIdx.x;
  for (int n = 0; n < 5; n++) {
    if (n < 4 && t < 16) copy_async<float>(held + (n % 2 * 64 + 4 * t), x + (n * 64 + 4 * t));
    commit_copies();
    if (n == 0) continue;
    wait_copies<1>();
    sync_threads();
    out[(n - 1) * 64 + t] = held[(n - 1) % 2 * 64 + 63 - t];
    sync_threads();
  }
}
EXPORT(streamed)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Six pieces, by the copy engine and mbarriers.
KERNEL(64) engine(Global<const float> x, Global<float> out) {
  Shared<float> held = shared<float>(0);
  Shared<uint64> full = shared<uint64>(512), read = shared<uint64>(528);
  const int t = threadIdx.x;
  if (t == 0) {
    for (int s = 0; s < 2; s++) barrier_init(full + s, 1), barrier_init(read + s, 64);
    barrier_fence();
  }
  sync_threads();
  for (int n = 0; n < 7; n++) {
    if (t == 0 && n < 6) {
      if (n >= 2) barrier_wait(read + n % 2, (n / 2 - 1) % 2);
      barrier_expect(full + n % 2, 256);
      copy_bulk<float>(held + n % 2 * 64, x + n * 64, 256, full + n % 2);
    }
    if (n == 0) continue;
    const int s = (n - 1) % 2;
    barrier_wait(full + s, (n - 1) / 2 % 2);
    out[(n - 1) * 64 + t] = held[s * 64 + 63 - t];
    barrier_arrive(read + s);
  }
}
EXPORT(engine)
#endif

// Pairs of numbers and their bits, whole numbers over lanes, and copies of which some bring zeros, 16 and 4 bytes at a time.
KERNEL(32) packed(Global<const float> x, Global<uint32> pairs, Global<uint32> rounded, Global<Stored> stored,
                  Global<int> most, Global<float> copied) {
  const int t = threadIdx.x;
  const float low = x[2 * t], high = x[2 * t + 1];
  pairs[t] = pack(low, high, Stored());
  rounded[t] = round_tf32(low);
  store_pair<Stored>(stored, 2 * t, low, high);
  most[t] = max_over_lanes(int(float_bits(low) % 1000)) * 1000 + min_over_lanes(t + 5) + any_lane(t == 7);
  copy_async<float>(16 * t, x + t / 2 * 4, t % 3 > 0);
  copy_number_async(512 + 4 * t, x + t, t % 3 > 0);
  commit_copies();
  wait_copies<0>();
  sync_warp();
  for (int n = 0; n < 4; n++) copied[4 * t + n] = read_shared(16 * t + 4 * n);
  copied[128 + t] = read_shared(512 + 4 * t);
}
EXPORT(packed)

KERNEL(32) shuffled(Global<const float> x, Global<float> out) {
  for (int lanes = 1; lanes < 32; lanes *= 2) out[lanes * 32 + threadIdx.x] = shuffle_xor(float(x[threadIdx.x]), lanes);
  out[threadIdx.x] = reciprocal(float(x[threadIdx.x]));
}
EXPORT(shuffled)
