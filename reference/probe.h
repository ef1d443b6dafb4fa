// Reporting of intermediates to a TapSink under the names of model/taps.h.
#pragma once

#include <string>
#include <string_view>

#include "model/decoder.h"
#include "reference/matrix.h"

namespace dsv2::reference {

/// A sink together with the module whose intermediates are reported. Without a sink it does nothing.
class Probe {
 public:
  Probe() = default;
  Probe(TapSink* sink, const Call& call) : sink_(sink), batch_(call.batch), tokens_(call.tokens) {}

  /// The probe of a submodule: names are prefixed with "`module`.".
  Probe in(std::string_view module) const {
    Probe p = *this;
    if (sink_) p.prefix_ = concat(prefix_, module, ".");
    return p;
  }
  /// Reports `values` [N, width] as [B,S,width]. The sink may overwrite them.
  template <class T>
  void tap(std::string_view name, Matrix<T>& values) const {
    tap(name, values, {batch_, tokens_, values.cols()});
  }
  /// The same under another shape of as many elements.
  template <class T>
  void tap(std::string_view name, Matrix<T>& values, Shape shape) const {
    if (sink_) sink_->tap(concat(prefix_, name), {dtype_of<T>(), std::move(shape), values.data()}, values.data());
  }
  /// The same as [B,S,heads,width/heads].
  template <class T>
  void tap_heads(std::string_view name, Matrix<T>& values, std::int64_t heads) const {
    tap(name, values, {batch_, tokens_, heads, values.cols() / heads});
  }

 private:
  TapSink* sink_ = nullptr;
  std::int64_t batch_ = 0, tokens_ = 0;
  std::string prefix_;
};

}  // namespace dsv2::reference
