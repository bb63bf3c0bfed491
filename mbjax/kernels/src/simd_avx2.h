// Sixteen lanes in two AVX2 registers; int8 products by widening multiply-adds.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct Simd {
  struct F { __m256 a, b; };
  struct I { __m256i a, b; };
  struct W { __m256i a, b; };
  using Sums4 = I;  // of a block of 4-bit products, in 16 bits: 8 times 2 * 15 * 128 fit

  static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static F load_n(const float* p, int n) {
    if (n == 16) return load(p);
    return {_mm256_maskload_ps(p, first(n)), n > 8 ? _mm256_maskload_ps(p + 8, first(n - 8)) : _mm256_setzero_ps()};
  }
  static void store(float* p, F x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
  }
  static void store_n(float* p, F x, int n) {
    if (n == 16) return store(p, x);
    _mm256_maskstore_ps(p, first(n), x.a);
    if (n > 8) _mm256_maskstore_ps(p + 8, first(n - 8), x.b);
  }
  static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  static F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
  static F abs(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
  }
  static F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
  static F round(F x) { return {nearest(x.a), nearest(x.b)}; }
  static F scale2(F x, F n) { return {_mm256_mul_ps(x.a, power2(n.a)), _mm256_mul_ps(x.b, power2(n.b))}; }
  static float sum(F x) {
    const __m256 s = _mm256_add_ps(x.a, x.b);
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
  }
  static float max_of(F x) {
    const __m256 s = _mm256_max_ps(x.a, x.b);
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
  }
  static F load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(eight(p)), _mm256_cvtph_ps(eight(p + 8))}; }
  static F load_bf16(const uint16_t* p) { return {bf16(p), bf16(p + 8)}; }
  static F load_i8(const int8_t* p) { return {i8(p), i8(p + 8)}; }
  static void store_i8(int8_t* p, F rounded) {
    __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(rounded.a), _mm256_cvtps_epi32(rounded.b));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }
  static F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

  static I start8(int32_t) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static Sums4 start4() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I end4(Sums4 x, int32_t start) {
    const __m256i ones = _mm256_set1_epi16(1), first = _mm256_set1_epi32(start);
    return {_mm256_add_epi32(first, _mm256_madd_epi16(x.a, ones)), _mm256_add_epi32(first, _mm256_madd_epi16(x.b, ones))};
  }
  static W load8(const uint8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
  }
  static void load4(const uint8_t* p, W* low, W* high) {
    const __m256i mask = _mm256_set1_epi8(0x0f);
    const W both = load8(p);
    *low = {_mm256_and_si256(both.a, mask), _mm256_and_si256(both.b, mask)};
    *high = {_mm256_and_si256(_mm256_srli_epi16(both.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(both.b, 4), mask)};
  }
  // The multiply-add takes unsigned times signed and saturates at 16 bits: |w| <= 128 times |a| <= 127, twice, fits.
  static I dot8(I acc, W w, const int8_t* a) {
    const __m256i x = four(a);
    return {add4(acc.a, _mm256_abs_epi8(w.a), _mm256_sign_epi8(x, w.a)),
            add4(acc.b, _mm256_abs_epi8(w.b), _mm256_sign_epi8(x, w.b))};
  }
  static Sums4 dot4(Sums4 acc, W w, const int8_t* a) {
    const __m256i x = four(a);
    return {_mm256_add_epi16(acc.a, _mm256_maddubs_epi16(w.a, x)), _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(w.b, x))};
  }
  static F sums(const F* v) {
    return {fold8(v), fold8(v + 8)};
  }

 private:
  static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static __m256 nearest(__m256 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static __m256 power2(__m256 n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }
  // Lane i of the result is the sum over all lanes of v[i].
  static __m256 fold8(const F* v) {
    __m256 s[8];
    for (int i = 0; i < 8; ++i) s[i] = _mm256_add_ps(v[i].a, v[i].b);
    const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
    const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(s[4], s[5]), _mm256_hadd_ps(s[6], s[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
  }
  static __m128i eight(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static __m256 bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight(p)), 16));
  }
  static __m256 i8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static __m256i four(const int8_t* a) {
    int32_t x;
    std::memcpy(&x, a, 4);
    return _mm256_set1_epi32(x);
  }
  static __m256i add4(__m256i acc, __m256i w, __m256i a) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
  }
};

}  // namespace
