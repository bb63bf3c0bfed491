// Sixteen lanes as a plain array: the meaning of every operation, and what runs where nothing better is known.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct Simd {
  struct F { float v[16]; };
  struct I { int32_t v[16]; };
  struct W { int8_t v[64]; };
  using Sums4 = I;

  template <class Fn>
  static F each(Fn fn) {
    F out;
    for (int i = 0; i < 16; ++i) out.v[i] = fn(i);
    return out;
  }
  static F zero() { return set1(0.f); }
  static F set1(float x) { return each([=](int) { return x; }); }
  static F load(const float* p) { return each([=](int i) { return p[i]; }); }
  static F load_n(const float* p, int n) { return each([=](int i) { return i < n ? p[i] : 0.f; }); }
  static void store(float* p, const F& x) { std::memcpy(p, x.v, sizeof x.v); }
  static void store_n(float* p, const F& x, int n) { std::memcpy(p, x.v, static_cast<size_t>(n) * sizeof(float)); }
  static F add(const F& a, const F& b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
  static F sub(const F& a, const F& b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
  static F mul(const F& a, const F& b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
  static F div(const F& a, const F& b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
  static F max(const F& a, const F& b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
  static F min(const F& a, const F& b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
  static F abs(const F& a) { return each([&](int i) { return std::fabs(a.v[i]); }); }
  static F fma(const F& a, const F& b, const F& c) { return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
  static F round(const F& a) { return each([&](int i) { return std::nearbyint(a.v[i]); }); }
  static F scale2(const F& a, const F& n) {
    return each([&](int i) { return std::isfinite(n.v[i]) ? std::ldexp(a.v[i], static_cast<int>(n.v[i])) : a.v[i]; });
  }
  static float sum(const F& a) {
    float total = 0;
    for (float x : a.v) total += x;
    return total;
  }
  static float max_of(const F& a) {
    float top = a.v[0];
    for (float x : a.v) top = x > top ? x : top;
    return top;
  }
  static F load_f16(const uint16_t* p) { return each([=](int i) { return half(p[i]); }); }
  static F load_bf16(const uint16_t* p) {
    return each([=](int i) {
      const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
      float x;
      std::memcpy(&x, &bits, 4);
      return x;
    });
  }
  static F load_i8(const int8_t* p) { return each([=](int i) { return static_cast<float>(p[i]); }); }
  static void store_i8(int8_t* p, const F& rounded) {
    for (int i = 0; i < 16; ++i) {  // a NaN has no integer; its scale is NaN too, so any value will do
      p[i] = rounded.v[i] >= -128.f && rounded.v[i] <= 127.f ? static_cast<int8_t>(rounded.v[i]) : int8_t{0};
    }
  }
  static F to_float(const I& a) { return each([&](int i) { return static_cast<float>(a.v[i]); }); }

  static I start8(int32_t) { return I{}; }
  static I start4() { return I{}; }
  static I end4(I x, int32_t start) {
    for (int32_t& v : x.v) v += start;
    return x;
  }
  static W load8(const uint8_t* p) {
    W out;
    std::memcpy(out.v, p, 64);
    return out;
  }
  static void load4(const uint8_t* p, W* low, W* high) {
    for (int i = 0; i < 64; ++i) {
      low->v[i] = static_cast<int8_t>(p[i] & 15);
      high->v[i] = static_cast<int8_t>(p[i] >> 4);
    }
  }
  static I dot8(const I& acc, const W& w, const int8_t* a) {
    I out;
    for (int i = 0; i < 16; ++i) {
      const int8_t* x = w.v + 4 * i;
      out.v[i] = acc.v[i] + x[0] * a[0] + x[1] * a[1] + x[2] * a[2] + x[3] * a[3];
    }
    return out;
  }
  static I dot4(const I& acc, const W& w, const int8_t* a) { return dot8(acc, w, a); }
  static F sums(const F* v) { return each([=](int i) { return sum(v[i]); }); }

 private:
  static float half(uint16_t h) {
    const int exponent = (h >> 10) & 31, fraction = h & 1023;
    float x = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
              : exponent == 31 ? (fraction ? NAN : INFINITY)
                               : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    return h & 0x8000 ? -x : x;
  }
};

}  // namespace
