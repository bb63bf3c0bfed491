// Sixteen lanes in one AVX-512 register; int8 products by VNNI.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct Simd {
  using F = __m512;
  using I = __m512i;
  using W = __m512i;  // 16 lanes of 4 weights
  using Sums4 = I;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store_n(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F scale2(F a, F n) { return _mm512_scalef_ps(a, n); }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  static float max_of(F a) { return _mm512_reduce_max_ps(a); }
  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_bf16(const uint16_t* p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static F load_i8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static void store_i8(int8_t* p, F rounded) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(rounded)));
  }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }

  // Unsigned times signed is what VNNI offers: int8 weights are shifted by 128, and that is taken off in the start.
  static I start8(int32_t sum) { return _mm512_set1_epi32(-128 * sum); }
  static I start4() { return _mm512_setzero_si512(); }
  static I end4(I x, int32_t start) { return _mm512_add_epi32(x, _mm512_set1_epi32(start)); }
  static W load8(const uint8_t* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static void load4(const uint8_t* p, W* low, W* high) {
    const __m512i mask = _mm512_set1_epi8(0x0f);
    __m512i both = _mm512_loadu_si512(p);
    *low = _mm512_and_si512(both, mask);
    *high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
  }
  static I dot8(I acc, W w, const int8_t* a) { return _mm512_dpbusd_epi32(acc, w, four(a)); }
  static I dot4(I acc, W w, const int8_t* a) { return _mm512_dpbusd_epi32(acc, w, four(a)); }

  // Lane i of the result is the sum over all lanes of v[i].
  static F sums(const F* v) {
    F a[8], b[4], c[2];
    for (int i = 0; i < 8; ++i) a[i] = fold32(v[2 * i], v[2 * i + 1]);
    for (int i = 0; i < 4; ++i) b[i] = fold64(a[2 * i], a[2 * i + 1]);
    for (int i = 0; i < 2; ++i) {
      F low = _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88);
      F high = _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd);
      c[i] = add(low, high);
    }
    return add(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
  }

 private:
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static __m512i four(const int8_t* a) {
    int32_t x;
    std::memcpy(&x, a, 4);
    return _mm512_set1_epi32(x);
  }
  static F fold32(F a, F b) { return add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); }
  static F fold64(F a, F b) {
    __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return add(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
};

}  // namespace
