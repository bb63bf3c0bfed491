// Sixteen lanes in four NEON registers; int8 products by SDOT where the machine has it, else by widening multiplies.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {

struct Simd {
  struct F { float32x4_t v[4]; };
  struct I { int32x4_t v[4]; };
  struct W { int8x16_t v[4]; };
  using Sums4 = I;

  template <class Fn>
  static F each(Fn fn) { return {{fn(0), fn(1), fn(2), fn(3)}}; }
  static F zero() { return set1(0.f); }
  static F set1(float x) { return each([=](int) { return vdupq_n_f32(x); }); }
  static F load(const float* p) { return each([=](int i) { return vld1q_f32(p + 4 * i); }); }
  static F load_n(const float* p, int n) {
    if (n == 16) return load(p);
    float all[16] = {};
    std::memcpy(all, p, static_cast<size_t>(n) * sizeof(float));
    return load(all);
  }
  static void store(float* p, F x) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
  }
  static void store_n(float* p, F x, int n) {
    float all[16];
    store(all, x);
    std::memcpy(p, all, static_cast<size_t>(n) * sizeof(float));
  }
  static F add(F a, F b) { return each([=](int i) { return vaddq_f32(a.v[i], b.v[i]); }); }
  static F sub(F a, F b) { return each([=](int i) { return vsubq_f32(a.v[i], b.v[i]); }); }
  static F mul(F a, F b) { return each([=](int i) { return vmulq_f32(a.v[i], b.v[i]); }); }
  static F div(F a, F b) { return each([=](int i) { return vdivq_f32(a.v[i], b.v[i]); }); }
  static F max(F a, F b) { return each([=](int i) { return vmaxq_f32(a.v[i], b.v[i]); }); }
  static F min(F a, F b) { return each([=](int i) { return vminq_f32(a.v[i], b.v[i]); }); }
  static F abs(F a) { return each([=](int i) { return vabsq_f32(a.v[i]); }); }
  static F fma(F a, F b, F c) { return each([=](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); }); }
  static F round(F a) { return each([=](int i) { return vrndnq_f32(a.v[i]); }); }
  static F scale2(F a, F n) {
    return each([=](int i) {
      const int32x4_t biased = vaddq_s32(vcvtnq_s32_f32(n.v[i]), vdupq_n_s32(127));
      return vmulq_f32(a.v[i], vreinterpretq_f32_s32(vshlq_n_s32(biased, 23)));
    });
  }
  static float sum(F a) { return vaddvq_f32(vaddq_f32(vaddq_f32(a.v[0], a.v[1]), vaddq_f32(a.v[2], a.v[3]))); }
  static float max_of(F a) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3]))); }
  static F load_f16(const uint16_t* p) {
    return each([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
  }
  static F load_bf16(const uint16_t* p) {
    return each([=](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
  }
  static F load_i8(const int8_t* p) {
    const int8x16_t x = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_s8(vget_high_s8(x));
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
  }
  static void store_i8(int8_t* p, F rounded) {
    int32_t wide[16];
    for (int i = 0; i < 4; ++i) vst1q_s32(wide + 4 * i, vcvtnq_s32_f32(rounded.v[i]));
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(wide[i]);
  }
  static F to_float(I a) { return each([=](int i) { return vcvtq_f32_s32(a.v[i]); }); }

  static I start8(int32_t) { return start4(); }
  static I start4() {
    const int32x4_t x = vdupq_n_s32(0);
    return {{x, x, x, x}};
  }
  static I end4(I x, int32_t start) {
    for (int32x4_t& v : x.v) v = vaddq_s32(v, vdupq_n_s32(start));
    return x;
  }
  static W load8(const uint8_t* p) {
    const int8_t* s = reinterpret_cast<const int8_t*>(p);
    return {{vld1q_s8(s), vld1q_s8(s + 16), vld1q_s8(s + 32), vld1q_s8(s + 48)}};
  }
  static void load4(const uint8_t* p, W* low, W* high) {
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t both = vld1q_u8(p + 16 * i);
      low->v[i] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
      high->v[i] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
    }
  }
  static I dot8(I acc, W w, const int8_t* a) {
    int32_t x;
    std::memcpy(&x, a, 4);
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(x));
    for (int i = 0; i < 4; ++i) acc.v[i] = dot(acc.v[i], w.v[i], four);
    return acc;
  }
  static I dot4(I acc, W w, const int8_t* a) { return dot8(acc, w, a); }
  static F sums(const F* v) {
    float out[16];
    for (int i = 0; i < 16; ++i) out[i] = sum(v[i]);
    return load(out);
  }

 private:
  static int32x4_t dot(int32x4_t acc, int8x16_t w, int8x16_t a) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(acc, w, a);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(a)), high = vmull_s8(vget_high_s8(w), vget_high_s8(a));
    const int32x4_t pairs_low = vpaddlq_s16(low), pairs_high = vpaddlq_s16(high);
    return vaddq_s32(acc, vpaddq_s32(pairs_low, pairs_high));
#endif
  }
};

}  // namespace
