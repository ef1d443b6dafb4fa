#include "harness/modelled.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
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

/// Launches that take the same time (gpusim's LaunchShape), with what is said of their kernel.
struct Launches {
  Json facts;
  double count = 0;

  double number(const char* key) const { return facts.at(key).get<double>(); }
  double bytes() const { return count * number("distinct_bytes"); }
  double modelled_us(const Json& device) const {
    const auto of = [&](const char* key) { return device.at(key).get<double>(); };
    const double each = std::max(
        {1e6 * number("distinct_bytes") / (kModelledBandwidthShare * of("bandwidth_gb_s") * 1e9),
         number("tensor_us") / kModelledTensorShare, 1e6 * number("other_flops") / (of("f32_tflop_s") * 1e12)});
    return count * (each + kModelledGapUs);
  }
};

/// What is said of a kernel, once, and of launches of the same shape.
constexpr const char* kKernelFacts[] = {"registers", "machine_code", "stack_bytes", "static_shared_bytes"};
constexpr const char* kShapeFacts[] = {"dynamic_shared_bytes", "resident_blocks", "occupancy", "bytes_in_flight"};

/// Of one kernel, all its instances together.
struct Sums {
  double launches = 0, blocks = 0, distinct = 0, requested = 0, ideal = 0, wavefronts = 0, ideal_wavefronts = 0;
  double tensor_flops = 0, other_flops = 0, us = 0;
  std::map<std::string, Launches> shapes;

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
    for (Json shape : kernel.at("shapes")) {
      const double of_shape = shape.at("launches").get<double>();
      shape.erase("launches");
      for (const char* fact : kKernelFacts) shape[fact] = kernel.at(fact);
      Launches& same = shapes[shape.dump()];
      same.count += sign * of_shape;
      same.facts = std::move(shape);
    }
  }
  void operator+=(const Sums& o) {
    launches += o.launches, blocks += o.blocks, distinct += o.distinct, requested += o.requested, ideal += o.ideal;
    wavefronts += o.wavefronts, ideal_wavefronts += o.ideal_wavefronts;
    tensor_flops += o.tensor_flops, other_flops += o.other_flops, us += o.us;
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
  /// What a block of it takes, of the launches that move most bytes; `needed`: bytes in flight that hide latency.
  Json resources(double needed) const {
    const Launches* most = nullptr;
    double stack = 0;
    for (const auto& [key, same] : shapes) {
      if (same.count == 0) continue;
      stack = std::max(stack, same.number("stack_bytes"));
      if (!most || same.bytes() > most->bytes()) most = &same;
    }
    Json out;
    for (const char* fact : kKernelFacts) out[fact] = most->facts.at(fact);
    for (const char* fact : kShapeFacts) out[fact] = most->facts.at(fact);
    out["stack_bytes"] = stack;
    // A launch whose bytes are all on their way at once cannot have more of them.
    out["bytes_in_flight_needed"] = std::min(needed, most->number("distinct_bytes"));
    return out;
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
  const double bandwidth = device.at("bandwidth_gb_s").get<double>() * 1e9;
  const double in_flight_needed = bandwidth * device.at("latency_ns").get<double>() * 1e-9;
  Json rows = Json::array();
  Sums all;
  for (auto& [name, sums] : kernels) {
    if (sums.launches == 0) continue;
    for (const auto& [key, same] : sums.shapes) sums.us += same.modelled_us(device);
    all += sums;
    Json row = {{"name", name}};
    row.update(sums.to_json());
    row.update(sums.resources(in_flight_needed));
    rows.push_back(std::move(row));
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Json& a, const Json& b) { return a.at("modelled_us") > b.at("modelled_us"); });
  const double least = minimum.total();
  const double roof_us = 1e6 * least / bandwidth;
  Json out = {{"device", device}, {"kernels", rows}};
  out.update(all.to_json());
  out["minimum_bytes"] = least;
  out["distinct_over_minimum"] = ratio(all.distinct, least);
  out["requested_over_minimum"] = ratio(all.requested, least);
  out["roof_us"] = roof_us;
  out["share_of_roof"] = ratio(roof_us, all.us);
  out["bytes_in_flight_needed"] = in_flight_needed;
  return out;
}

Json bars(const Json& m, const BarsOf& step) {
  const auto of = [](const Json& row, const char* key) { return row.at(key).get<double>(); };
  // Of a kernel that moves little, launching takes longer than its bytes do.
  constexpr double kLittle = 0.01;
  // The embedding, the last norm and the head.
  constexpr double kOutsideLayers = 3;
  Json out = Json::array();
  const auto add = [&](const char* bar, double found, const char* side, double limit, const Json& worst = nullptr) {
    const bool met = side[0] == 'l' ? found >= limit : found <= limit;
    out.push_back({{"bar", bar}, {"found", found}, {side, limit}, {"met", met}, {"worst", worst}});
  };
  if (step.decode) {
    add("distinct_over_minimum", of(m, "distinct_over_minimum"), "most", 1.05);
    add("requested_over_minimum", of(m, "requested_over_minimum"), "most", 1.5);
  }
  add("sector_efficiency", of(m, "ideal_bytes") / of(m, "requested_bytes"), "least", 0.98);
  const double wavefronts = of(m, "shared_wavefronts");
  add("bank_conflicts", ratio(wavefronts - of(m, "shared_ideal_wavefronts"), wavefronts), "most", 0.01);
  // The worst kernel: spills are known where there is machine code; in flight counts where bytes are moved.
  double stack = 0, in_flight = std::numeric_limits<double>::infinity();
  Json spilling, starving;
  for (const Json& row : m.at("kernels")) {
    if (of(row, "blocks") == 0) continue;  // a library's: how it computes is not known
    const double known =
        of(row, "machine_code") > 0 ? of(row, "stack_bytes") : std::numeric_limits<double>::quiet_NaN();
    if (!std::isnan(stack) && !(known <= stack)) stack = known, spilling = row.at("name");
    const double covered = ratio(of(row, "bytes_in_flight"), of(row, "bytes_in_flight_needed"));
    if (of(row, "distinct_bytes") > kLittle * of(m, "distinct_bytes") && covered < in_flight)
      in_flight = covered, starving = row.at("name");
  }
  add("spill_bytes", stack, "most", 0, spilling);
  if (step.decode) {
    add("bytes_in_flight_over_needed", in_flight, "least", 1, starving);
    add("launches_per_layer", (of(m, "launches") - kOutsideLayers) / static_cast<double>(step.layers), "most", 6);
    if (m.at("device").at("name") == "h100") add("share_of_roof", of(m, "share_of_roof"), "least", 0.76);
  } else if (step.tensor_cores) {
    add("tensor_core_share", ratio(of(m, "tensor_flops"), of(m, "tensor_flops") + of(m, "other_flops")), "least", 0.95);
  }
  return out;
}

bool all_met(const Json& bars) {
  return std::all_of(bars.begin(), bars.end(), [](const Json& b) { return b.at("met").get<bool>(); });
}

Json beside_measured(const Json& modelled_report, const Json& measured_report) {
  // Names of decoders hold that of their backend.
  const auto work_of = [](const Json& record) {
    std::string name = record.at("name");
    constexpr std::string_view kSimulated = "/cuda-sim/";
    if (const std::size_t at = name.find(kSimulated); at != std::string::npos)
      name.replace(at, kSimulated.size(), "/cuda/");
    return name;
  };
  std::map<std::string, const Json*> measured;
  for (const Json& record : measured_report.at("records")) measured.emplace(work_of(record), &record);
  Json rows = Json::array();
  for (const Json& record : modelled_report.at("records")) {
    const auto other = measured.find(work_of(record));
    if (!record.contains("modelled") || other == measured.end()) continue;
    const Json& m = record.at("modelled");
    const double us = m.at("modelled_us");
    Json row = {{"name", other->first}, {"modelled_us", us}, {"measured_us", nullptr}};
    row["measured_over_modelled"] = row["share_of_roof"] = nullptr;
    if (const Json& ns = other->second->at("median_ns"); ns.is_number()) {
      const double found = ns.get<double>() * 1e-3;
      row["measured_us"] = found;
      row["measured_over_modelled"] = ratio(found, us);
      row["share_of_roof"] = ratio(m.at("roof_us"), found);
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

void print_beside_measured(const Json& rows, std::ostream& out) {
  Table table({"row", "modelled us", "measured us", "measured/modelled", "of roof"});
  const auto number = [](const Json& value, int digits) {
    return value.is_number() ? fixed(value.get<double>(), digits) : std::string();
  };
  for (const Json& row : rows)
    table.add({row.at("name").get<std::string>(), number(row.at("modelled_us"), 1), number(row.at("measured_us"), 1),
               number(row.at("measured_over_modelled"), 2),
               row.at("share_of_roof").is_number() ? percent(row.at("share_of_roof").get<double>()) : ""});
  table.print(out);
}

namespace {

void print_resources(const Json& m, std::ostream& out) {
  const auto of = [](const Json& row, const char* key) { return row.at(key).get<double>(); };
  const double needed = of(m, "bytes_in_flight_needed");
  Table table(
      {"kernel", "registers", "spills", "shared, static", "dynamic", "blocks/SM", "occupancy", "in flight", "/needed"});
  int machine_code = 0;
  for (const Json& row : m.at("kernels")) {
    if (of(row, "blocks") == 0) continue;  // a library's
    machine_code = row.at("machine_code").get<int>();
    table.add({row.at("name").get<std::string>(), fixed(of(row, "registers"), 0),
               machine_code ? si(of(row, "stack_bytes"), "B") : "?", si(of(row, "static_shared_bytes"), "B"),
               si(of(row, "dynamic_shared_bytes"), "B"), fixed(of(row, "resident_blocks"), 0),
               percent(of(row, "occupancy")), si(of(row, "bytes_in_flight"), "B"),
               fixed(ratio(of(row, "bytes_in_flight"), of(row, "bytes_in_flight_needed")), 2)});
  }
  out << "\nregisters "
      << (machine_code ? concat("and spills by ptxas for sm_", machine_code) : "estimated from PTX: no machine code")
      << "; in flight: resident blocks x warps x the loads that need not wait for each other; needed: "
      << fixed(of(m.at("device"), "bandwidth_gb_s"), 0) << " GB/s x " << fixed(of(m.at("device"), "latency_ns"), 0)
      << " ns = " << si(needed, "B") << ", or all that a launch moves\n";
  table.print(out);
}

void print_bars(const Json& bars, std::ostream& out) {
  Table table({"bar", "", "limit", "found", "", "worst"});
  for (const Json& b : bars) {
    const bool least = b.contains("least");
    const auto number = [](const Json& n) {
      return n.is_number() ? fixed(n.get<double>(), 3) : std::string("unknown");
    };
    table.add({b.at("bar").get<std::string>(), least ? ">=" : "<=", number(b.at(least ? "least" : "most")),
               number(b.at("found")), b.at("met").get<bool>() ? "met" : "MISSED",
               b.at("worst").is_string() ? b.at("worst").get<std::string>() : ""});
  }
  table.print(out);
}

}  // namespace

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
  print_resources(m, out);
  out << "minimum by cost " << si(of(m, "minimum_bytes"), "B") << ": DRAM " << fixed(of(m, "distinct_over_minimum"), 3)
      << " times, L2 " << fixed(of(m, "requested_over_minimum"), 3) << " times; roof " << fixed(of(m, "roof_us"), 0)
      << " us, modelled " << fixed(of(m, "modelled_us"), 0) << " us: " << percent(of(m, "share_of_roof")) << " of it\n";
  if (const auto bars = m.find("bars"); bars != m.end()) {
    out << '\n';
    print_bars(*bars, out);
  }
}

}  // namespace dsv2::harness
