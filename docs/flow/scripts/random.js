// Vectors of words and matrices from a seed: the same in every browser, as only 32-bit integers are used until the end.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  /** FNV-1a of a text, as an unsigned 32-bit integer. */
  function hash(text) {
    let state = 0x811c9dc5;
    for (const byte of new TextEncoder().encode(text)) {
      state = Math.imul(state ^ byte, 0x01000193);
    }
    return state >>> 0;
  }

  /** A generator of uniform numbers in [0, 1) (mulberry32). */
  function generator(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 15), state | 1);
      mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  /** `count` numbers between -size and size with two decimals, so that what is shown is what is computed with. */
  function numbers(name, count, size) {
    const next = generator(hash(name));
    next(); // the first number of similar seeds is similar
    return Array.from({ length: count }, () => Math.round((2 * next() - 1) * size * 100) / 100 || 0);
  }

  Object.assign(Flow, { hash, generator, numbers });
})(Flow);
