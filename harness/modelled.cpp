#include "harness/modelled.h"

#include <algorithm>
#include <cstdlib>
#include <map>

#include "gpusim/device_model.h"
#include "harness/table.h"

namespace dsv2::harness {
namespace {

constexpr double kSectorBytes = 32;

/// "void dsv2::cuda::(anonymous namespace)::linear_rows_kernel<...>(...)" -> "linear_rows"
std::string short_name(std::string name) {
  if (const std::size_t end = name.find("_kernel"); end != std::string::npos) name.resize(end);
  if (const std::size_t scope = name.rfind("::"); scope != std::string::npos) name.erase(0, scope + 2);
  return name;
}

/// Of one kernel, all its instances together.
struct Sums {
  double launches = 0, blocks = 0, distinct = 0, requested = 0, ideal = 0, wavefronts = 0, ideal_wavefronts = 0;
  double tensor_flops = 0, other_flops = 0, us = 0;

  void add(const Json& kernel, double sign) {
    const Json& c = kernel.at("counts");
    const auto count = [&](const char* key) { return sign * c.at(key).get<double>(); };
    launches += sign * kernel.at("launches").get<double>();
    blocks += sign * kernel.at("blocks").get<double>();
    distinct += kSectorBytes * (count("distinct_load_sectors") + count("distinct_store_sectors"));
    requested += kSectorBytes * (count("global_load_sectors") + count("global_store_sectors"));
    ideal += kSectorBytes * count("global_ideal_sectors");
    wavefronts += count("shared_wavefronts");
    ideal_wavefronts += count("shared_ideal_wavefronts");
    for (const auto& [type, flops] : c.at("flops").items())
      (type.rfind("tensor", 0) == 0 ? tensor_flops : other_flops) += sign * flops.get<double>();
  }
  void operator+=(const Sums& o) {
    launches += o.launches, blocks += o.blocks, distinct += o.distinct, requested += o.requested, ideal += o.ideal;
    wavefronts += o.wavefronts, ideal_wavefronts += o.ideal_wavefronts;
    tensor_flops += o.tensor_flops, other_flops += o.other_flops, us += o.us;
  }
  void model(const Json& device) {
    const auto of = [&](const char* key) { return device.at(key).get<double>(); };
    us = 1e6 * std::max({distinct / (kModelledBandwidthShare * of("bandwidth_gb_s") * 1e9),
                         tensor_flops / (kModelledTensorShare * of("dense_bf16_tflop_s") * 1e12),
                         other_flops / (of("f32_tflop_s") * 1e12)}) +
         kModelledGapUs * launches;
  }
  Json to_json() const {
    return {{"launches", launches},
            {"blocks", blocks},
            {"distinct_bytes", distinct},
            {"requested_bytes", requested},
            {"ideal_bytes", ideal},
            {"shared_wavefronts", wavefronts},
            {"shared_ideal_wavefronts", ideal_wavefronts},
            {"tensor_flops", tensor_flops},
            {"other_flops", other_flops},
            {"modelled_us", us}};
  }
};

double ratio(double a, double b) { return b > 0 ? a / b : 0; }

}  // namespace

void count_on_simulator(const std::string& device) {
  if (!device.empty()) {
    gpusim::device_model(device);
    setenv("GPUSIM_DEVICE", device.c_str(), 1);
  }
  setenv("GPUSIM_CHECKS", "none", 0);
  setenv("GPUSIM_COUNTS", "1", 0);
  setenv("GPUSIM_QUIET", "1", 0);
}

Json modelled(const std::string& before, const std::string& after, const Bytes& minimum) {
  const Json from = Json::parse(before), to = Json::parse(after);
  if (!to.at("counts").get<bool>()) return nullptr;
  const Json& device = to.at("device");
  std::map<std::string, Sums> kernels;
  for (const auto& [report, sign] : {std::pair(&to, 1.0), std::pair(&from, -1.0)})
    for (const Json& kernel : report->at("kernels"))
      kernels[short_name(kernel.at("name").get<std::string>())].add(kernel, sign);
  Json rows = Json::array();
  Sums all;
  for (auto& [name, sums] : kernels) {
    if (sums.launches == 0) continue;
    sums.model(device);
    all += sums;
    Json row = {{"name", name}};
    row.update(sums.to_json());
    rows.push_back(std::move(row));
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Json& a, const Json& b) { return a.at("modelled_us") > b.at("modelled_us"); });
  const double least = minimum.total();
  const double roof_us = 1e6 * least / (device.at("bandwidth_gb_s").get<double>() * 1e9);
  Json out = {{"device", device}, {"kernels", rows}};
  out.update(all.to_json());
  out["minimum_bytes"] = least;
  out["distinct_over_minimum"] = ratio(all.distinct, least);
  out["requested_over_minimum"] = ratio(all.requested, least);
  out["roof_us"] = roof_us;
  out["share_of_roof"] = ratio(roof_us, all.us);
  return out;
}

void print_modelled(const Json& m, std::ostream& out) {
  const auto of = [](const Json& row, const char* key) { return row.at(key).get<double>(); };
  Table table({"kernel", "launches", "blocks", "DRAM at least", "L2 serves", "sectors/ideal", "wavefronts/ideal",
               "tensor FLOP", "other FLOP", "modelled us"});
  const auto add = [&](const std::string& name, const Json& row) {
    table.add({name, fixed(of(row, "launches"), 0), fixed(of(row, "blocks"), 0), si(of(row, "distinct_bytes"), "B"),
               si(of(row, "requested_bytes"), "B"), fixed(ratio(of(row, "requested_bytes"), of(row, "ideal_bytes")), 3),
               fixed(ratio(of(row, "shared_wavefronts"), of(row, "shared_ideal_wavefronts")), 3),
               si(of(row, "tensor_flops"), ""), si(of(row, "other_flops"), ""), fixed(of(row, "modelled_us"), 1)});
  };
  for (const Json& row : m.at("kernels")) add(row.at("name").get<std::string>(), row);
  add("all", m);
  const Json& device = m.at("device");
  out << "modelled for " << device.at("name").get<std::string>() << " ("
      << fixed(device.at("bandwidth_gb_s").get<double>(), 0)
      << " GB/s), nothing measured: each kernel max(DRAM / 0.93 bandwidth, tensor FLOP / 0.8 peak, other FLOP / peak), "
         "and 1 us a launch\n";
  table.print(out);
  out << "minimum by cost " << si(of(m, "minimum_bytes"), "B") << ": DRAM " << fixed(of(m, "distinct_over_minimum"), 3)
      << " times, L2 " << fixed(of(m, "requested_over_minimum"), 3) << " times; roof " << fixed(of(m, "roof_us"), 0)
      << " us, modelled " << fixed(of(m, "modelled_us"), 0) << " us: " << percent(of(m, "share_of_roof")) << " of it\n";
}

}  // namespace dsv2::harness
