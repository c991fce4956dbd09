// The machine below emulation.h: fibers and their scheduler, vector clocks, checked memory, asynchronous copies.
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

using int64 = long long;
using uint32 = unsigned int;
using uint64 = unsigned long long;
struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };
#include "emulation.h"

namespace emulation {

struct Fault { std::string what; };

void fault(const char* format, ...) {
  char text[400];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  throw Fault{text};
}

Dim thread_index, block_index, block_size, grid_size;
unsigned char* shared_memory;

namespace {

constexpr size_t STACK = 96 << 10, GRANULE = 2;
constexpr int NOBODY = -1;
constexpr float TOO_EARLY = 777;  // in place of sums under way; finite, as kernels may know what to do with NaN

// A fiber's place: by hand where that is known, as a switch by ucontext asks the kernel of the system twice.
#if defined(__x86_64__)
struct Context { void* stack; };
extern "C" void attnarray_switch(void** from, void* to);
asm(R"(
.text
.globl attnarray_switch
attnarray_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
void switch_context(Context& from, Context& to) { attnarray_switch(&from.stack, to.stack); }
void make_context(Context& context, char* stack, size_t bytes, Context&, void (*start)()) {
  auto top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(15));
  top[-2] = reinterpret_cast<void*>(start);  // where the first switch returns to; six registers below
  context.stack = top - 8;
}
#else
struct Context { ucontext_t held; };
void switch_context(Context& from, Context& to) { swapcontext(&from.held, &to.held); }
void make_context(Context& context, char* stack, size_t bytes, Context& back, void (*start)()) {
  getcontext(&context.held);
  context.held.uc_stack.ss_sp = stack;
  context.held.uc_stack.ss_size = bytes;
  context.held.uc_link = &back.held;
  makecontext(&context.held, start, 0);
}
#endif

// Who did something, and when by its own clock.
struct Event { int who = NOBODY; uint32 when = 0; };

struct SharedCell {
  Event writer;
  bool in_flight = false;  // an asynchronous copy writes it, and nobody has waited for it yet
  int multiplied = 0;      // products of warpgroups that read it, and that not all of their threads have waited for
  std::vector<Event> readers;
};
struct GlobalCell {
  Event writer, reader;
  int writing_block = NOBODY, reading_block = NOBODY;
};
struct Array {
  char* start;
  size_t bytes;
  std::vector<GlobalCell> cells;
};

struct Fiber {
  Context context;
  bool done = false;
  const int* waiting = nullptr;  // goes on when *waiting is no longer `value`
  int value = 0;
  const char* at = "";
};

using Clock = std::vector<uint32>;  // one entry per thread, and a last one for the copy engine

struct Meeting {  // of all threads of a block or of a warp
  int here = 0, turn = 0;
  bool flag[2] = {false, false};
  const char* what = nullptr;
  unsigned char slots[2][32 * 64];
};

struct Copy { size_t to; const char* from; uint32 bytes; int thread, group; size_t barrier; };
// What a product of a warpgroup takes and makes; the sums of all its threads, one after the other.
struct Product {
  std::vector<uint32> left;  // registers, or none and
  uint64 described, right;
  int columns, group;
  bool adds, brain, is_done = false;
  float* places[128];
  std::vector<size_t> read;  // granules of shared memory
};
struct Sums { std::vector<float> values; std::vector<bool> is_there; int group; };  // is_there: at the places of a thread
struct Warpgroup {
  Meeting meeting;
  const uint32* left[128];
  float* places[128];
  std::vector<Product> products;   // in order: done, then to be done
  std::map<float*, Sums> under_way;  // by the place of the first thread
  int done = 0;                    // a number that changes when a product is done
  std::vector<int> group, waited;  // of each thread: the open group, and how many were waited for
};
struct Barrier { int count = 0, pending = 0, parity = 0; int64 bytes = 0; Clock clock; };

std::vector<Fiber> fibers;
struct Clocks {  // of all threads, one after the other
  std::vector<uint32> all;
  uint32* operator[](int thread) { return all.data() + size_t(thread) * (width); }
  size_t width = 0;
};
Clocks clocks;
std::vector<char*> stacks;
std::vector<SharedCell> cells;
std::vector<Array> arrays;
std::vector<Meeting> warps;
std::vector<Warpgroup> warpgroups;
std::vector<uint32> shown;                          // of each thread: its clock when it last called show_products
Meeting whole;
std::vector<Copy> copies;                           // on their way
std::map<std::pair<int, int>, std::vector<Copy>> arrived;  // by thread and group, not waited for yet
std::vector<int> group, waited;                     // of each thread: the open group, and how many were waited for
std::vector<int> pending_groups;                    // of each thread: a number that changes when a copy of it arrives
std::map<size_t, Barrier> barriers;
Context scheduler;
int current, threads, block_number;
uint32 engine_clock;
uint32 random_state;
std::string failure;
bool moved;  // something happened in this round

uint32 draw() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  return random_state ^= random_state << 5;
}

void switch_out() { switch_context(fibers[current].context, scheduler); }

void wait_while(const int* place, int value, const char* at) {
  fibers[current].at = at;
  if (*place != value) return;
  fibers[current].waiting = place;
  fibers[current].value = value;
  switch_out();
}

void join(uint32* into, const uint32* from) {
  for (size_t n = 0; n < clocks.width; n++) into[n] = std::max(into[n], from[n]);
}

// All threads [first, past) know what each of them did before.
void join_all(int first, int past) {
  static Clock joined;
  joined.assign(clocks[first], clocks[first] + clocks.width);
  for (int n = first + 1; n < past; n++) join(joined.data(), clocks[n]);
  for (int n = first; n < past; n++) {
    std::copy(joined.begin(), joined.end(), clocks[n]);
    clocks[n][n]++;
  }
}

bool known(const Event& event) {
  return event.who == NOBODY || event.who == current || event.when <= clocks[current][event.who];
}

std::string name(int who) { return who == threads ? "the copy engine" : "thread " + std::to_string(who); }

// One thread after the other comes; the last one lets all go on. Returns which of two turns it was.
template <class Last> int meet(Meeting& meeting, int count, const char* what, Last last) {
  if (meeting.here == 0) meeting.what = what;
  if (strcmp(meeting.what, what)) fault("thread %d is at %s while others are at %s", current, what, meeting.what);
  int turn = meeting.turn;
  if (++meeting.here == count) {
    last();
    meeting.here = 0;
    meeting.turn++;
    meeting.flag[meeting.turn & 1] = false;
    moved = true;
  } else {
    wait_while(&meeting.turn, turn, what);
  }
  return turn & 1;
}


struct Task { Body body; void* function; void** arguments; } task;

void entry() {
  try {
    task.body(task.function, task.arguments);
  } catch (const Fault& found) {
    if (failure.empty()) {
      Dim t = thread_index, b = block_index;
      char place[120];
      snprintf(place, sizeof place, " [thread (%u, %u, %u) of block (%u, %u, %u)]", t.x, t.y, t.z, b.x, b.y, b.z);
      failure = found.what + place;
    }
  }
  fibers[current].done = true;
  moved = true;
  switch_out();
}

// A random copy arrives; its numbers are there, but who has not waited for it must not look.
void arrive() {
  size_t which = draw() % copies.size();
  Copy copy = copies[which];
  copies.erase(copies.begin() + which);
  copy.from ? memcpy(shared_memory + copy.to, copy.from, copy.bytes) : memset(shared_memory + copy.to, 0, copy.bytes);
  moved = true;
  if (copy.barrier == UNKNOWN) {
    arrived[{copy.thread, copy.group}].push_back(copy);
    pending_groups[copy.thread]++;
    return;
  }
  engine_clock++;
  for (size_t n = copy.to / GRANULE; n < (copy.to + copy.bytes) / GRANULE; n++) {
    cells[n].in_flight = false;
    cells[n].writer = {threads, engine_clock};
    cells[n].readers.clear();
  }
  Barrier& barrier = barriers[copy.barrier];
  barrier.clock[threads] = std::max(barrier.clock[threads], engine_clock);
  barrier.bytes -= copy.bytes;
  if (barrier.pending == 0 && barrier.bytes == 0) {
    barrier.parity ^= 1;
    barrier.pending = barrier.count;
  }
}

void do_product(Warpgroup& group);
bool is_to_do(const Warpgroup& group) { return !group.products.empty() && !group.products.back().is_done; }

void report_deadlock() {
  std::map<std::string, int> places;
  int left = 0;
  for (auto& fiber : fibers) fiber.done ? void(left++) : void(places[fiber.at]++);
  failure = "deadlock:";
  for (auto& place : places) failure += " " + std::to_string(place.second) + " threads wait at " + place.first + ",";
  failure += " " + std::to_string(left) + " have left the kernel";
}

void start_fibers() {
  for (int n = 0; n < threads; n++) {
    if (int(stacks.size()) <= n) stacks.push_back(static_cast<char*>(malloc(STACK)));
    make_context(fibers[n].context, stacks[n], STACK, scheduler, entry);
  }
}

void reset(unsigned shared) {
  fibers.assign(threads, {});
  clocks.width = threads + 1;
  clocks.all.assign(threads * clocks.width, 0);
  for (int n = 0; n < threads; n++) clocks[n][n] = 1;
  cells.assign(shared / GRANULE + 1, {});
  warps.assign((threads + 31) / 32, {});
  warpgroups.assign(threads / 128, {});
  for (auto& one : warpgroups) one.group.assign(128, 0), one.waited.assign(128, 0);
  shown.assign(threads, 0);
  whole = {};
  copies.clear(), arrived.clear(), barriers.clear();
  group.assign(threads, 0), waited.assign(threads, 0), pending_groups.assign(threads, 0);
  engine_clock = 0;
}

// Rounds in random order over the fibers that can go on; between them, copies arrive at random.
void run_block(unsigned shared) {
  reset(shared);
  start_fibers();
  std::vector<int> ready;
  for (;;) {
    ready.clear();
    bool all_done = true;
    for (int n = 0; n < threads; n++) {
      Fiber& fiber = fibers[n];
      all_done &= fiber.done;
      if (!fiber.done && (!fiber.waiting || *fiber.waiting != fiber.value)) ready.push_back(n);
    }
    if (all_done || !failure.empty()) return;
    for (size_t n = ready.size(); n > 1; n--) std::swap(ready[n - 1], ready[draw() % n]);
    moved = false;
    for (int n : ready) {
      current = n;
      thread_index = {n % block_size.x, n / block_size.x % block_size.y, n / block_size.x / block_size.y};
      fibers[n].waiting = nullptr;
      moved = true;
      switch_context(scheduler, fibers[n].context);
      if (!failure.empty()) return;
    }
    if (!copies.empty() && (ready.empty() || draw() % 2)) arrive();
    for (auto& group : warpgroups)
      while (is_to_do(group) && (ready.empty() || draw() % 2)) do_product(group);
    if (!moved) return report_deadlock();
  }
}

Array& array_of(const char* place, size_t bytes, Access access) {
  for (auto& array : arrays)
    if (place >= array.start && place + bytes <= array.start + array.bytes) return array;
  const char* verb = access == READ ? "reads" : "writes";
  for (auto& array : arrays) {
    long long off = place - array.start;
    if (off >= -4096 && off < (long long)array.bytes + 4096)
      fault("out of bounds: %s %zu bytes at byte %lld of a global array of %zu", verb, bytes, off, array.bytes);
  }
  fault("out of bounds: %s %zu bytes of global memory that belong to no array", verb, bytes);
}

}  // namespace

unsigned lane() { return current % 32; }

void touch_global(const void* address, size_t bytes, Access access) {
  const char* place = static_cast<const char*>(address);
  Array& array = array_of(place, bytes, access);
  size_t first = (place - array.start) / GRANULE, past = (place - array.start + bytes + GRANULE - 1) / GRANULE;
  for (size_t n = first; n < past; n++) {
    GlobalCell& cell = array.cells[n];
    if (cell.writer.who != NOBODY && (cell.writing_block != block_number || !known(cell.writer)))
      fault("race: %s byte %zu of a global array, which thread %d of block %d has written%s",
            access == READ ? "reads" : "writes", n * GRANULE, cell.writer.who, cell.writing_block,
            cell.writing_block == block_number ? " with no barrier between them" : "");
    if (access == WRITE && cell.reader.who != NOBODY && (cell.reading_block != block_number || !known(cell.reader)))
      fault("race: writes byte %zu of a global array, which thread %d of block %d has read", n * GRANULE,
            cell.reader.who, cell.reading_block);
    if (access == WRITE)
      cell.writer = {current, clocks[current][current]}, cell.writing_block = block_number, cell.reader = {};
    else
      cell.reader = {current, clocks[current][current]}, cell.reading_block = block_number;
  }
}

static unsigned shared_size;

static void check_shared(size_t offset, size_t bytes, Access access) {
  const char* verb = access == READ ? "reads" : "writes";
  if (offset + bytes > shared_size || offset + bytes < offset)
    fault("out of bounds: %s %zu bytes at byte %lld of %u bytes of shared memory", verb, bytes, (long long)offset,
          shared_size);
  if (offset % std::min<size_t>(bytes, 16)) fault("misaligned: %s %zu bytes at byte %zu of shared memory", verb, bytes, offset);
  for (size_t n = offset / GRANULE; n < (offset + bytes + GRANULE - 1) / GRANULE; n++) {
    SharedCell& cell = cells[n];
    if (cell.in_flight) fault("race: %s byte %zu of shared memory while an asynchronous copy fills it", verb, n * GRANULE);
    if (!known(cell.writer))
      fault("race: %s byte %zu of shared memory, which %s has written, with no barrier between them", verb, n * GRANULE,
            name(cell.writer.who).c_str());
    if (access == READ && cell.writer.who == NOBODY)
      fault("reads byte %zu of shared memory, which nobody has written", n * GRANULE);
    if (access == WRITE && cell.multiplied)
      fault("race: writes byte %zu of shared memory while a product reads it", n * GRANULE);
    if (access == WRITE)
      for (auto& reader : cell.readers)
        if (!known(reader))
          fault("race: writes byte %zu of shared memory, which thread %d has read, with no barrier between them",
                n * GRANULE, reader.who);
  }
}

static void add_reader(SharedCell& cell) {
  Event event{current, clocks[current][current]};
  auto mine = std::find_if(cell.readers.begin(), cell.readers.end(), [](auto& e) { return e.who == current; });
  mine == cell.readers.end() ? cell.readers.push_back(event) : void(*mine = event);
}

void touch_shared(size_t offset, size_t bytes, Access access) {
  check_shared(offset, bytes, access);
  Event event{current, clocks[current][current]};
  for (size_t n = offset / GRANULE; n < (offset + bytes + GRANULE - 1) / GRANULE; n++) {
    SharedCell& cell = cells[n];
    if (access == WRITE) {
      cell.writer = event;
      cell.readers.clear();
      continue;
    }
    add_reader(cell);
  }
}

void sync_block() { meet(whole, threads, "sync_threads", [] { join_all(0, threads); }); }

bool any_in_block(bool flag) {
  int turn = whole.turn & 1;
  whole.flag[turn] |= flag;
  meet(whole, threads, "any_thread", [] { join_all(0, threads); });
  return whole.flag[turn];
}

static void check_warp() {
  if (threads % 32) fault("the block has %d threads, no whole number of warps", threads);
}

void sync_lanes() {
  check_warp();
  int first = current / 32 * 32;
  meet(warps[current / 32], 32, "sync_warp", [=] { join_all(first, first + 32); });
}

const unsigned char* exchange(const char* what, const void* mine, size_t bytes) {
  check_warp();
  Meeting& warp = warps[current / 32];
  memcpy(warp.slots[warp.turn & 1] + 64 * lane(), mine, bytes);
  return warp.slots[meet(warp, 32, what, [] {})];  // orders no memory, as on a GPU
}

void copy_async(size_t to, const void* from, uint32 bytes) {
  check_shared(to, bytes, WRITE);
  if (from) touch_global(from, bytes, READ);
  for (size_t n = to / GRANULE; n < (to + bytes) / GRANULE; n++) cells[n].in_flight = true;
  copies.push_back({to, static_cast<const char*>(from), bytes, current, group[current], UNKNOWN});
}

void commit_copies() { group[current]++; }

void wait_copies(int left) {
  int done = std::max(group[current] - left, waited[current]);
  auto under_way = [&] {
    return std::any_of(copies.begin(), copies.end(),
                       [&](auto& c) { return c.barrier == UNKNOWN && c.thread == current && c.group < done; });
  };
  while (under_way()) wait_while(&pending_groups[current], pending_groups[current], "wait_copies");
  for (; waited[current] < done; waited[current]++)
    for (auto& copy : arrived[{current, waited[current]}])
      for (size_t n = copy.to / GRANULE; n < (copy.to + copy.bytes) / GRANULE; n++) {
        cells[n].in_flight = false;
        cells[n].writer = {current, clocks[current][current]};
        cells[n].readers.clear();
      }
}

static Barrier& barrier_at(size_t place) {
  touch_shared(place, 8, READ);
  auto found = barriers.find(place);
  if (found == barriers.end()) fault("byte %zu of shared memory holds no barrier", place);
  return found->second;
}

void barrier_init(size_t place, int count) {
  touch_shared(place, 8, WRITE);
  Barrier barrier;
  barrier.count = barrier.pending = count;
  barrier.clock.assign(threads + 1, 0);
  barriers[place] = barrier;
}

void barrier_arrive(size_t place, uint32 bytes) {
  Barrier& barrier = barrier_at(place);
  if (barrier.pending == 0) fault("a barrier gets more arrivals than the %d of its phase", barrier.count);
  join(barrier.clock.data(), clocks[current]);
  clocks[current][current]++;
  barrier.bytes += bytes;
  barrier.pending--;
  if (barrier.pending == 0 && barrier.bytes == 0) barrier.parity ^= 1, barrier.pending = barrier.count;
  moved = true;
}

void barrier_wait(size_t place, uint32 parity) {
  Barrier& barrier = barrier_at(place);
  wait_while(&barrier.parity, int(parity), "barrier_wait");
  join(clocks[current], barrier.clock.data());
}

void copy_bulk(size_t to, const void* from, uint32 bytes, size_t place) {
  barrier_at(place);
  check_shared(to, bytes, WRITE);
  touch_global(from, bytes, READ);
  for (size_t n = to / GRANULE; n < (to + bytes) / GRANULE; n++) cells[n].in_flight = true;
  copies.push_back({to, static_cast<const char*>(from), bytes, current, 0, place});
}

int run(const Launch* how, Body body, void* function, void** arguments, const Range* ranges, int count, char* message) {
  block_size = {how->threads[0], how->threads[1], how->threads[2]};
  grid_size = {how->blocks[0], how->blocks[1], how->blocks[2]};
  threads = block_size.x * block_size.y * block_size.z;
  random_state = how->seed * 2654435761u + 12345u;
  task = {body, function, arguments};
  failure.clear();
  arrays.clear();
  for (int n = 0; n < count; n++)
    arrays.push_back({ranges[n].start, ranges[n].bytes, std::vector<GlobalCell>(ranges[n].bytes / GRANULE + 2)});
  std::vector<unsigned char> memory(how->shared + 128);
  shared_memory = memory.data() + (128 - reinterpret_cast<uintptr_t>(memory.data()) % 128);
  shared_size = how->shared;
  if (threads > 1024 || how->shared > 227 * 1024) failure = "a block has at most 1024 threads and 227 KiB of shared memory";
  unsigned blocks = grid_size.x * grid_size.y * grid_size.z, first = draw() % std::max(blocks, 1u);
  for (unsigned n = 0; n < blocks && failure.empty(); n++) {
    block_number = (first + n) % blocks;
    unsigned b = block_number;
    block_index = {b % grid_size.x, b / grid_size.x % grid_size.y, b / grid_size.x / grid_size.y};
    run_block(how->shared);
  }
  snprintf(message, 500, "%s", failure.c_str());
  return !failure.empty();
}

float from_half(uint16_t bits) {
  int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                              : exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(float(mantissa), -24);
  return bits & 0x8000 ? -size : size;
}

uint16_t to_half(float value) {
  uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  float size = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (size >= 65520.0f) return sign | 0x7c00;
  int exponent = size < 6.103515625e-05f ? -14 : std::ilogb(size);
  int mantissa = int(std::nearbyint(std::ldexp(size, 10 - exponent)));  // rounds to even
  return sign | uint16_t(mantissa + ((exponent + 14) << 10));           // 1024 carries into the exponent
}

uint16_t to_brain(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float from_brain(uint16_t half) {
  uint32_t bits = uint32_t(half) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// The units round their sums toward zero.
static float cut(double sum) {
  float near = float(sum);
  return std::fabs(double(near)) > std::fabs(sum) ? std::nextafter(near, 0.0f) : near;
}

static const uint32* registers(const unsigned char* all, int of) { return reinterpret_cast<const uint32*>(all + 64 * of); }

void multiply(float (&d)[4], const uint32* a, const uint32* b, bool brain) {
  uint32 mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const unsigned char* all = exchange("multiply_add", mine, sizeof mine);
  auto number = [&](int of, int place, int half) {
    uint16_t bits = uint16_t(registers(all, of)[place] >> (16 * half));
    return brain ? from_brain(bits) : from_half(bits);
  };
  for (int n = 0; n < 4; n++) {
    int row = lane() / 4, column = lane() % 4 * 2 + n % 2;
    double sum = d[n];
    for (int k = 0; k < 16; k++)
      sum += double(number(row * 4 + k % 8 / 2, n / 2 + k / 8 * 2, k % 2)) * number(column * 4 + k % 8 / 2, 4 + k / 8, k % 2);
    d[n] = cut(sum);
  }
}

void multiply_tf32(float (&d)[4], const uint32* a, const uint32* b) {
  uint32 mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const unsigned char* all = exchange("multiply_add_tf32", mine, sizeof mine);
  auto number = [&](int of, int place) {
    uint32 bits = registers(all, of)[place] & 0xffffe000u;
    float value;
    memcpy(&value, &bits, 4);
    return value;
  };
  for (int n = 0; n < 4; n++) {
    int row = lane() / 4, column = lane() % 4 * 2 + n % 2;
    double sum = d[n];
    for (int k = 0; k < 8; k++) sum += double(number(row * 4 + k % 4, n / 2 + k / 4 * 2)) * number(column * 4 + k % 4, 4 + k / 4);
    d[n] = cut(sum);
  }
}

void matrices(uint32 (&out)[4], size_t row, bool turned) {
  if (row % 16) fault("load_matrices: a row starts at byte %zu of shared memory, no multiple of 16", row);
  touch_shared(row, 16, READ);
  uint16_t mine[8];
  memcpy(mine, shared_memory + row, 16);
  const unsigned char* all = exchange(turned ? "load_matrices_transposed" : "load_matrices", mine, 16);
  for (int m = 0; m < 4; m++) {
    uint16_t pair[2];
    for (int h = 0; h < 2; h++) {
      int r = turned ? lane() % 4 * 2 + h : lane() / 4, c = turned ? lane() / 4 : lane() % 4 * 2 + h;
      memcpy(&pair[h], all + 64 * (8 * m + r) + 2 * c, 2);
    }
    out[m] = uint32(pair[0]) | uint32(pair[1]) << 16;
  }
}

void show_products() { shown[current] = clocks[current][current]++; }

// Where the numbers of a described matrix lie: row n and number k of what is summed along, or down if it is `turned`.
static size_t place_of(uint64 described, int n, int k, bool turned) {
  size_t start = (described & 0x3fff) << 4, leading = (described >> 16 & 0x3fff) << 4, stride = (described >> 32 & 0x3fff) << 4;
  size_t place = turned ? start + n / 64 * leading + n % 64 * 2 + k / 8 * stride + k % 8 * 128
                        : start + n / 8 * stride + n % 8 * 128 + k * 2;
  return place ^ (place >> 7 & 7) << 4;
}

static void read_for_product(Product& product, uint64 described, int rows, bool turned) {
  if (described >> 62 != 1) fault("multiply_group: a matrix is described with chunks that do not change places");
  for (int n = 0; n < rows; n++)
    for (int k = 0; k < 16; k++) {
      size_t place = place_of(described, n, k, turned);
      check_shared(place, 2, READ);
      SharedCell& cell = cells[place / GRANULE];
      if (cell.writer.who < threads && cell.writer.when > shown[cell.writer.who])
        fault("multiply_group reads byte %zu of shared memory, after which thread %d has not called show_products", place,
              cell.writer.who);
      cell.multiplied++;
      product.read.push_back(place / GRANULE);
    }
}

void multiply_group(float* sums, int columns, const uint32* left, uint64 described, uint64 right, bool adds, bool brain) {
  if (threads % 128) fault("the block has %d threads, no whole number of warpgroups", threads);
  Warpgroup& group = warpgroups[current / 128];
  int member = current % 128;
  group.left[member] = left, group.places[member] = sums;
  char what[120];
  snprintf(what, sizeof what, "multiply_group %d %llx %llx %d", columns, described, right, adds);
  meet(group.meeting, 128, what, [&] {
    Product product;
    product.described = described, product.right = right, product.columns = columns, product.group = group.group[member];
    product.adds = adds, product.brain = brain;
    if (left)
      for (auto registers : group.left) product.left.insert(product.left.end(), registers, registers + 4);
    std::copy(std::begin(group.places), std::end(group.places), product.places);
    if (!left) read_for_product(product, described, 64, false);
    read_for_product(product, right, columns, left != nullptr);
    auto [found, is_new] = group.under_way.try_emplace(group.places[0]);
    if (is_new)
      for (auto place : group.places) {
        found->second.values.insert(found->second.values.end(), place, place + columns / 2);
        std::fill(place, place + columns / 2, TOO_EARLY);
      }
    found->second.group = product.group;
    found->second.is_there.assign(128, false);
    group.products.push_back(product);
  });
}

namespace {

void do_product(Warpgroup& group) {
  auto product = std::find_if(group.products.begin(), group.products.end(), [](auto& one) { return !one.is_done; });
  auto value = [&](uint16_t bits) { return product->brain ? from_brain(bits) : from_half(bits); };
  auto load = [&](uint64 described, int n, int k, bool turned) {
    uint16_t bits;
    memcpy(&bits, shared_memory + place_of(described, n, k, turned), 2);
    return value(bits);
  };
  std::vector<float> a(64 * 16), b(16 * product->columns);
  for (int row = 0; row < 64; row++)
    for (int k = 0; k < 16; k++) {
      int thread = row / 16 * 32 + row % 8 * 4 + k % 8 / 2, place = row / 8 % 2 + k / 8 * 2;
      a[row * 16 + k] = product->left.empty() ? load(product->described, row, k, false)
                                              : value(uint16_t(product->left[4 * thread + place] >> (k % 2 * 16)));
    }
  for (int n = 0; n < product->columns; n++)
    for (int k = 0; k < 16; k++) b[n * 16 + k] = load(product->right, n, k, !product->left.empty());
  Sums& sums = group.under_way[product->places[0]];
  for (int thread = 0; thread < 128; thread++)
    for (int n = 0; n < product->columns / 2; n++) {
      int row = thread / 32 * 16 + thread % 32 / 4 + n / 2 % 2 * 8, column = n / 4 * 8 + thread % 4 * 2 + n % 2;
      float& sum = sums.values[thread * (product->columns / 2) + n];
      double all = product->adds ? sum : 0.0;
      for (int k = 0; k < 16; k++) all += double(a[row * 16 + k]) * b[column * 16 + k];
      sum = cut(all);
    }
  product->is_done = true;
  group.done++;
  moved = true;
}

}  // namespace

void commit_products() { warpgroups[current / 128].group[current % 128]++; }

// Sums of what is done come to their places when a thread waits; what was read may be written when all have.
void wait_products(int left) {
  Warpgroup& group = warpgroups[current / 128];
  int member = current % 128, past = std::max(group.group[member] - left, group.waited[member]);
  auto is_under_way = [&] {
    return std::any_of(group.products.begin(), group.products.end(), [&](auto& one) { return one.group < past && !one.is_done; });
  };
  while (is_under_way()) wait_while(&group.done, group.done, "wait_products");
  group.waited[member] = past;
  int all = *std::min_element(group.waited.begin(), group.waited.end());
  for (auto sums = group.under_way.begin(); sums != group.under_way.end();) {
    auto& [values, is_there, last] = sums->second;
    size_t each = values.size() / 128;
    if (last < past && !is_there[member]) {
      is_there[member] = true;
      auto product = std::find_if(group.products.begin(), group.products.end(),
                                  [&](auto& one) { return one.places[0] == sums->first; });
      memcpy(product->places[member], values.data() + member * each, each * sizeof(float));
    }
    sums = last < all ? group.under_way.erase(sums) : std::next(sums);
  }
  for (auto& product : group.products)
    if (product.group < all)
      for (size_t n : product.read) {
        cells[n].multiplied--;
        add_reader(cells[n]);
      }
  group.products.erase(std::remove_if(group.products.begin(), group.products.end(), [&](auto& one) { return one.group < all; }),
                       group.products.end());
}

}  // namespace emulation
