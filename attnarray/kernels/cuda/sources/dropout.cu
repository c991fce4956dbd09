// Dropout of elements, forward and backward alike, by a mask or by the bits of a seed. Reference: ops/dropout.py and the
// keep_mask of random.py. Parallel over the numbers, 32 bytes of them as stored to a thread. Shared: none.
#include "philox.cuh"
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;
constexpr int N = HELD_TWO<Stored>;

// Element n takes word n % 4 of block n / 4 and is dropped when it is below `limit`, which may be 2^32.
KERNEL(256) drop_by_seed(Global<const Stored> x, Global<Stored> out, int64 count, uint32 low, uint32 high, int64 limit,
                         Real factor) {
  const uint32 least = uint32(limit);
  const bool none = limit > 0xFFFFFFFFll;
  map_chunks<Stored, N>(x, out, count, [=](Real (&v)[CHUNK<Stored>], int64 i) {
    Words words;
    UNROLL for (int e = 0; e < CHUNK<Stored>; e++) {
      const int64 block = (i + e) / 4;
      if (e % 4 == 0) words = philox(uint32(block), uint32(block >> 32), 0, 0xFFFFFFFFu, low, high);
      const int word = CHUNK<Stored> >= 4 ? e % 4 : int((i + e) % 4);
      v[e] = !none && words.word[word] >= least ? v[e] * factor : Real(0);
    }
  });
}
EXPORT(drop_by_seed)

KERNEL(256) drop_by_mask(Global<const Stored> x, Global<const unsigned char> mask, Global<Stored> out, int64 count,
                         Real factor) {
  Real v[N];
  for (int64 start = blockIdx.x * span<Stored, N>(); start < count; start += gridDim.x * span<Stored, N>()) {
    read<Stored>(x, start, count, v, Real(0));
    each<Stored, N>(start, count, [&](int e, int64 i) { v[e] = mask[i] ? v[e] * factor : Real(0); });
    write<Stored>(out, start, count, v);
  }
}
EXPORT(drop_by_mask)
