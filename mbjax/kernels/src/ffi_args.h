// What the handlers share: buffers are checked once, as they come in.
#pragma once
#include <algorithm>
#include <string>

#include "stages.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace mbjax {

using Buffer = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;

// Collects the first thing found wrong with a call.
class Check {
 public:
  void that(bool good, const char* what) {
    if (!good && wrong_.empty()) wrong_ = what;
  }
  bool ok() const { return wrong_.empty(); }
  ffi::Error error() const { return ffi::Error::InvalidArgument("mbjax kernels: " + wrong_); }

 private:
  std::string wrong_;
};

inline int64_t dim(const Buffer& b, size_t i) { return i < b.dimensions().size() ? b.dimensions()[i] : -1; }
inline bool is(const Buffer& b, ffi::DataType type, size_t rank) {
  return b.element_type() == type && b.dimensions().size() == rank;
}

inline bool head_dim_known(int64_t e) { return e == 16 || e == 32 || e == 64 || e == 96 || e == 128 || e == 256; }

// Threads besides the caller's own that a call may use.
inline int64_t helpers(ffi::ThreadPool& pool, bool worth) {
  return worth ? std::max<int64_t>(0, pool.num_threads() - 1) : 0;
}

}  // namespace mbjax
