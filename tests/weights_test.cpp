#include "model/weights.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "model/error.h"
#include "model/file.h"
#include "model/memory.h"
#include "model/safetensors.h"
#include "tests/temporary_folder.h"

namespace dsv2 {
namespace {

using nlohmann::json;
using testing::message_of;
using testing::TemporaryFolder;

const std::filesystem::path kGolden = std::filesystem::path(DSV2_SOURCE_DIR) / "golden";
constexpr std::uint64_t kSeed = 20240607;

std::vector<NamedTensor> tensors_of(const Config& config, const Weights& weights) {
  std::vector<NamedTensor> tensors;
  for_each_tensor(config, weights, [&](const std::string& name, const Shape& shape, const TensorView& view) {
    EXPECT_TRUE(view) << name;
    EXPECT_EQ(view.shape, shape) << name;
    tensors.push_back({name, view});
  });
  return tensors;
}

bool same_bits(const TensorView& a, const TensorView& b) {
  return a.dtype == b.dtype && a.shape == b.shape &&
         std::memcmp(a.data, b.data, static_cast<std::size_t>(a.bytes())) == 0;
}

void expect_same(const Config& config, const Weights& a, const Weights& b) {
  const auto x = tensors_of(config, a), y = tensors_of(config, b);
  ASSERT_EQ(x.size(), y.size());
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_TRUE(same_bits(x[i].view, y[i].view)) << x[i].name;
}

/// A checkpoint folder with one file of `tensors`.
void write_checkpoint(const std::filesystem::path& folder, const std::vector<NamedTensor>& tensors) {
  write_safetensors(folder / "model.safetensors", tensors);
}

std::string refusal(const std::filesystem::path& path, const Config& config) {
  return message_of<Error>([&] { Weights::load(path, config); });
}

/// A model to spoil: tiny, random, with its list of tensors.
struct Model {
  explicit Model(std::string_view preset = "tiny-mha", DType dtype = DType::f32)
      : config(Config::preset(preset)),
        weights(Weights::random(config, kSeed, dtype)),
        tensors(tensors_of(config, *weights)) {}
  NamedTensor& find(const std::string& name) {
    for (NamedTensor& t : tensors)
      if (t.name == name) return t;
    fail("no tensor ", name);
  }
  Config config;
  std::shared_ptr<const Weights> weights;
  std::vector<NamedTensor> tensors;
};

constexpr const char* kUp = "model.layers.2.mlp.experts.3.up_proj.weight";

TEST(Load, ShardsOfAFullCheckpoint) {
  const auto folder = kGolden / "cases/shards_ocr";
  const Config config = Config::load(folder);
  LoadReport report;
  std::int64_t calls = 0, last = 0, total = 0;
  const auto weights = Weights::load(folder, config, &report, [&](std::int64_t done, std::int64_t all) {
    EXPECT_EQ(done, ++calls);
    last = done;
    total = all;
  });
  EXPECT_EQ(report.files, 2);
  EXPECT_EQ(report.vision_tensors, 12);
  EXPECT_TRUE(report.unused.empty());
  EXPECT_EQ(report.tensors, static_cast<std::int64_t>(tensors_of(config, *weights).size()));
  EXPECT_EQ(last, report.tensors);
  EXPECT_EQ(total, report.tensors);
  expect_same(config, *weights, *Weights::load(folder / "model.safetensors.index.json", config));
}

TEST(Load, FolderAndFileAreTheSame) {
  const auto folder = kGolden / "cases/mla_tiny";
  const Config config = Config::load(folder);
  expect_same(config, *Weights::load(folder, config), *Weights::load(folder / "model.safetensors", config));
}

TEST(Load, NamesWithoutThePrefix) {
  Model m;
  const TemporaryFolder folder;
  for (NamedTensor& t : m.tensors)
    if (t.name.starts_with("model.")) t.name = t.name.substr(6);
  write_checkpoint(folder.path(), m.tensors);
  expect_same(m.config, *m.weights, *Weights::load(folder.path(), m.config));
}

TEST(Load, CountsWhatItDoesNotUse) {
  Model m;
  const TemporaryFolder folder;
  const Tensor other(DType::i64, {3});  // of a dtype that no weight has
  for (const char* name : {"model.sam_model.pos_embed", "model.vision_model.x", "model.projector.layers.weight",
                           "model.image_newline", "model.view_seperator", "model.layers.9.extra", "sam_model_not"})
    m.tensors.push_back({name, other.view()});
  write_checkpoint(folder.path(), m.tensors);
  LoadReport report;
  Weights::load(folder.path(), m.config, &report);
  EXPECT_EQ(report.files, 1);
  EXPECT_EQ(report.vision_tensors, 5);
  EXPECT_EQ(report.unused, (std::vector<std::string>{"model.layers.9.extra", "sam_model_not"}));
}

TEST(Load, KeepsHalfPrecisionAsStored) {
  for (const DType dtype : {DType::f16, DType::bf16}) {
    Model m("tiny-mla");
    const TemporaryFolder folder;
    const auto rounded = Weights::rounded(m.weights, m.config, dtype);
    write_checkpoint(folder.path(), tensors_of(m.config, *rounded));
    const auto loaded = Weights::load(folder.path(), m.config);
    EXPECT_EQ(loaded->layers[2].experts[3].up_proj.weight.dtype, dtype);
    EXPECT_EQ(loaded->layers[2].gate.dtype, DType::f32);
    expect_same(m.config, *rounded, *loaded);
  }
}

TEST(Load, ATiedHeadIsTheEmbedding) {
  const auto folder = kGolden / "cases/moe_freq_tied";
  const Config config = Config::load(folder);
  ASSERT_TRUE(config.tie_word_embeddings);
  const auto weights = Weights::load(folder, config);
  EXPECT_EQ(weights->lm_head.data, weights->embed_tokens.data);
  EXPECT_EQ(weights->lm_head.shape, weights->embed_tokens.shape);
}

TEST(Load, RefusesMissingAndMisshapenTensors) {
  {
    Model m;
    const TemporaryFolder folder;
    std::erase_if(m.tensors, [](const NamedTensor& t) { return t.name == kUp; });
    write_checkpoint(folder.path(), m.tensors);
    const auto message = refusal(folder.path(), m.config);
    EXPECT_NE(message.find(kUp), std::string::npos) << message;
    EXPECT_NE(message.find("expected shape [24, 64], found no such tensor"), std::string::npos) << message;
  }
  Model m;
  const TemporaryFolder folder;
  m.find(kUp).view.shape = {64, 24};
  write_checkpoint(folder.path(), m.tensors);
  const auto message = refusal(folder.path(), m.config);
  EXPECT_NE(message.find(kUp), std::string::npos) << message;
  EXPECT_NE(message.find("expected shape [24, 64], found [64, 24]"), std::string::npos) << message;
}

TEST(Load, RefusesOtherDtypes) {
  for (const DType dtype : {DType::f64, DType::i64, DType::s8}) {
    Model m;
    const TemporaryFolder folder;
    const Tensor zeros(dtype, m.find(kUp).view.shape);
    m.find(kUp).view = zeros.view();
    write_checkpoint(folder.path(), m.tensors);
    const auto message = refusal(folder.path(), m.config);
    EXPECT_NE(message.find(kUp), std::string::npos) << message;
    EXPECT_NE(message.find("expected dtype F32, BF16 or F16"), std::string::npos) << message;
  }
}

/// Every dtype; first, last and middle element; tensors below and above the size that is scanned in parallel.
TEST(Load, FindsTheOneValueThatIsNotFinite) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  Config config = Config::preset("tiny-mha");
  config.vocab_size = 1000;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const auto weights = Weights::rounded(Weights::random(config, kSeed, DType::f32), config, dtype);
    for (const char* name : {"model.embed_tokens.weight", kUp}) {
      for (const float value : {nan, inf, -inf}) {
        auto tensors = tensors_of(config, *weights);
        auto& spoilt = *std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.name == name; });
        for (const std::int64_t at : {std::int64_t{0}, spoilt.view.size() / 2 + 1, spoilt.view.size() - 1}) {
          auto values = widen<float>(spoilt.view);
          values[static_cast<std::size_t>(at)] = value;
          const Tensor bad = convert(Tensor::from<float>(values, spoilt.view.shape).view(), dtype);
          auto with_bad = tensors;
          with_bad[static_cast<std::size_t>(&spoilt - tensors.data())].view = bad.view();
          const TemporaryFolder folder;
          write_checkpoint(folder.path(), with_bad);
          const auto message = refusal(folder.path(), config);
          EXPECT_NE(message.find(concat("tensor ", name, ": expected finite")), std::string::npos) << message;
          EXPECT_NE(message.find(concat("at element ", at)), std::string::npos) << message;
        }
      }
    }
  }
}

TEST(Load, LargestFiniteValuesAreFine) {
  Model m;
  const TemporaryFolder folder;
  const auto& shape = m.find(kUp).view.shape;
  const std::vector<float> values(static_cast<std::size_t>(element_count(shape)), std::numeric_limits<float>::max());
  const auto large = Tensor::from<float>(values, shape);
  m.find(kUp).view = large.view();
  write_checkpoint(folder.path(), m.tensors);
  EXPECT_NO_THROW(Weights::load(folder.path(), m.config));
}

TEST(Load, AConfigThatClaimsMillionsOfExpertsCostsNothing) {
  Model m;
  const TemporaryFolder folder;
  write_checkpoint(folder.path(), m.tensors);
  m.config.num_hidden_layers = m.config.n_routed_experts.emplace(4096);
  const auto message = refusal(folder.path(), m.config);
  EXPECT_NE(message.find("n_routed_experts"), std::string::npos) << message;
}

TEST(Load, RefusesAFolderWithoutACheckpoint) {
  const TemporaryFolder folder;
  const Config config = Config::preset("tiny-mha");
  EXPECT_NE(refusal(folder.path(), config).find("model.safetensors.index.json"), std::string::npos);
  EXPECT_NE(refusal(folder / "nowhere", config).find("nowhere"), std::string::npos);
}

/// Two shards, and an index that a test can spoil.
struct Sharded : Model {
  Sharded() {
    const std::size_t half = tensors.size() / 2;
    write_safetensors(folder / "a.safetensors", std::span(tensors).first(half + 1));
    write_safetensors(folder / "b.safetensors", std::span(tensors).subspan(half));
    shared = tensors[half].name;
    for (std::size_t i = 0; i < tensors.size(); ++i)
      index["weight_map"][tensors[i].name] = i < half ? "a.safetensors" : "b.safetensors";
  }
  void write_index() { write_text_file(folder / "model.safetensors.index.json", index.dump()); }

  TemporaryFolder folder;
  json index;
  std::string shared;  ///< a tensor that is in both shards
};

TEST(Index, SaysWhichOfTwoShardsCounts) {
  Sharded m;
  const std::size_t half = m.tensors.size() / 2;
  std::vector<NamedTensor> other(m.tensors.begin(), m.tensors.begin() + static_cast<std::ptrdiff_t>(half) + 1);
  const Tensor zeros(DType::f32, other.back().view.shape);
  other.back().view = zeros.view();
  write_safetensors(m.folder / "a.safetensors", other);
  m.write_index();
  LoadReport report;
  expect_same(m.config, *m.weights, *Weights::load(m.folder.path(), m.config, &report));
  EXPECT_EQ(report.unused, std::vector<std::string>{m.shared}) << "the copy that the index does not name";
  m.index["weight_map"][m.shared] = "a.safetensors";
  m.write_index();
  const auto weights = Weights::load(m.folder.path(), m.config);
  for (const NamedTensor& t : tensors_of(m.config, *weights))
    EXPECT_TRUE(t.name != m.shared || same_bits(t.view, zeros.view()));
}

TEST(Index, TheSingleFileWins) {
  Sharded m;
  m.index["weight_map"][kUp] = "nowhere.safetensors";
  m.write_index();
  EXPECT_NE(refusal(m.folder.path(), m.config).find("nowhere.safetensors"), std::string::npos);
  write_checkpoint(m.folder.path(), m.tensors);
  EXPECT_NO_THROW(Weights::load(m.folder.path(), m.config));
}

TEST(Index, RefusesWhatIsNotThereOrNotAName) {
  const std::pair<json, std::string> cases[] = {
      {3, "weight_map"},
      {nullptr, "weight_map"},
      {json::array({"a.safetensors"}), "weight_map"},
      {json{{kUp, 3}}, kUp},
      {json{{kUp, ""}}, kUp},
      {json{{kUp, ".."}}, kUp},
      {json{{kUp, "/etc/passwd"}}, "/etc/passwd"},
      {json{{kUp, "../a.safetensors"}}, "../a.safetensors"},
      {json{{kUp, "sub\\a.safetensors"}}, kUp},
      {json{{kUp, std::string("a.safetensors\0", 14)}}, kUp},
      {json{{kUp, "a\n.safetensors"}}, "a\n.safetensors"},
      {json{{kUp, "a.safetensors"}}, kUp},  // it is in b
      {json::object(), "found 0"},
  };
  for (const auto& [weight_map, names] : cases) {
    Sharded m;
    m.index["weight_map"] = weight_map;
    m.write_index();
    const auto message = refusal(m.folder.path(), m.config);
    EXPECT_NE(message.find(names), std::string::npos) << weight_map << " -> " << message;
    EXPECT_NE(message.find(m.folder.path().string()), std::string::npos) << message;
  }
  Sharded m;
  m.index = json::array();
  m.write_index();
  EXPECT_NE(refusal(m.folder.path(), m.config).find("weight_map"), std::string::npos);
}

TEST(Random, DependsOnSeedNameAndIndexOnly) {
  Config config = Config::preset("tiny-mla");
  config.vocab_size = 1000;  // large enough for the embedding to be drawn in parallel
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const auto one = Weights::random(config, kSeed, DType::f32);
  omp_set_num_threads(3);
  const auto three = Weights::random(config, kSeed, DType::f32);
  omp_set_num_threads(threads);
  expect_same(config, *one, *three);

  const auto half = Weights::random(config, kSeed, DType::bf16);
  const auto exact = tensors_of(config, *one), rounded = tensors_of(config, *half);
  for (std::size_t i = 0; i < exact.size(); ++i)
    EXPECT_TRUE(same_bits(convert(exact[i].view, rounded[i].view.dtype).view(), rounded[i].view)) << exact[i].name;

  const auto other = Weights::random(config, kSeed + 1, DType::f32);
  const auto x = tensors_of(config, *one), y = tensors_of(config, *other);
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_FALSE(same_bits(x[i].view, y[i].view)) << x[i].name;

  const auto& experts = one->layers[1].experts;
  EXPECT_FALSE(same_bits(experts[0].up_proj.weight, experts[1].up_proj.weight));
  EXPECT_FALSE(same_bits(experts[0].up_proj.weight, experts[0].gate_proj.weight));

  // A longer tensor of the same name and fan-in starts with the same values.
  config.vocab_size = 2000;
  const auto longer = Weights::random(config, kSeed, DType::f32);
  EXPECT_EQ(std::memcmp(longer->embed_tokens.data, one->embed_tokens.data,
                        static_cast<std::size_t>(one->embed_tokens.bytes())),
            0);
}

/// Values written down once: a change of the generator changes every seeded record.
TEST(Random, KeepsItsValues) {
  const Config config = Config::preset("tiny-mha");
  const auto weights = Weights::random(config, 1, DType::f32);
  const auto embed = weights->embed_tokens.as<float>(), norm = weights->norm.as<float>();
  EXPECT_EQ(embed[0], 1.46529579f);
  EXPECT_EQ(embed[1], -1.01915002f);
  EXPECT_EQ(norm[0], 0.954515934f);
}

struct Moments {
  double mean = 0, deviation = 0, kurtosis = 0, largest = 0;
};
Moments moments(const TensorView& view) {
  const auto x = widen<double>(view);
  const auto n = static_cast<double>(x.size());
  Moments m;
  for (const double v : x) m.mean += v / n;
  double second = 0, fourth = 0;
  for (const double v : x) {
    const double d = v - m.mean;
    second += d * d / n;
    fourth += d * d * d * d / n;
    m.largest = std::max(m.largest, std::fabs(d));
  }
  m.deviation = std::sqrt(second);
  m.kurtosis = fourth / (second * second);
  return m;
}

TEST(Random, HasTheDistributionThatIsPromised) {
  Config config = Config::preset("tiny-mha");
  config.vocab_size = 20000;
  const auto weights = Weights::random(config, kSeed, DType::f32);
  // The bounds are 5 standard errors of the statistic at this size.
  const auto n = static_cast<double>(weights->embed_tokens.size());
  const Moments embed = moments(weights->embed_tokens), head = moments(weights->lm_head);
  EXPECT_NEAR(embed.mean, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(embed.deviation, 1, 5 / std::sqrt(2 * n));
  EXPECT_NEAR(embed.kurtosis, 2.7, 5 * std::sqrt(24 / n));
  EXPECT_LT(embed.largest, 3.47);
  EXPECT_GT(embed.largest, 3.2);
  EXPECT_NEAR(head.deviation * 8, 1, 5 / std::sqrt(2 * n)) << "fan-in 64";

  // Neighbours are uncorrelated.
  const auto x = weights->embed_tokens.as<float>();
  double product = 0;
  for (std::size_t i = 1; i < x.size(); ++i) product += double{x[i]} * x[i - 1] / n;
  EXPECT_NEAR(product, 0, 5 / std::sqrt(n));

  const Moments norm = moments(weights->norm), bias = moments(weights->layers[0].self_attn.q_proj.bias);
  EXPECT_NEAR(norm.mean, 1, 5 * 0.1 / 8);
  EXPECT_NEAR(norm.deviation, 0.1, 5 * 0.1 / std::sqrt(128));
  EXPECT_NEAR(bias.mean, 0, 5 * 0.02 / 8);
  EXPECT_NEAR(bias.deviation, 0.02, 5 * 0.02 / std::sqrt(128));
}

TEST(Random, NormsAndGateStayF32) {
  const Config config = Config::preset("tiny-mla");
  const auto weights = Weights::random(config, kSeed, DType::bf16);
  EXPECT_EQ(weights->embed_tokens.dtype, DType::bf16);
  EXPECT_EQ(weights->lm_head.dtype, DType::bf16);
  EXPECT_EQ(weights->norm.dtype, DType::f32);
  EXPECT_EQ(weights->layers[0].self_attn.q_a_layernorm.dtype, DType::f32);
  EXPECT_EQ(weights->layers[1].gate.dtype, DType::f32);
  EXPECT_EQ(weights->layers[1].e_score_correction_bias.dtype, DType::f32);
  EXPECT_EQ(weights->layers[1].experts[0].down_proj.weight.dtype, DType::bf16);
  EXPECT_EQ(Weights::random(Config::preset("tiny-mha"), kSeed, DType::bf16)->layers[0].self_attn.q_proj.bias.dtype,
            DType::bf16);
  EXPECT_THROW(Weights::random(config, kSeed, DType::f16), Error);
}

TEST(Random, RefusesWhatDoesNotFitInMemory) {
  if (!available_memory_bytes()) GTEST_SKIP() << "this system does not say how much memory is available";
  const auto message = message_of<Error>([] { Weights::random(Config::preset("deepseek-v3"), 0, DType::f32); });
  EXPECT_NE(message.find("needs 2684"), std::string::npos) << message;
  EXPECT_NE(message.find("available"), std::string::npos) << message;
}

TEST(Rounded, SharesWhatDoesNotChange) {
  const Model m;
  EXPECT_EQ(Weights::rounded(m.weights, m.config, DType::f32), m.weights);
  const auto half = Weights::rounded(m.weights, m.config, DType::bf16);
  EXPECT_EQ(half->norm.data, m.weights->norm.data);
  EXPECT_EQ(half->layers[1].gate.data, m.weights->layers[1].gate.data);
  const auto &from = m.weights->layers[1].experts[0].up_proj.weight, &to = half->layers[1].experts[0].up_proj.weight;
  EXPECT_TRUE(same_bits(to, convert(from, DType::bf16).view()));
  EXPECT_EQ(half->layers[0].self_attn.q_proj.bias.dtype, DType::f32) << "biases are kept";
  EXPECT_THROW(Weights::rounded(m.weights, m.config, DType::i64), Error);
}

TEST(Rounded, KeepsATiedHeadTied) {
  Config config = Config::preset("tiny-mha");
  config.tie_word_embeddings = true;
  const auto weights = Weights::random(config, kSeed, DType::f32);
  EXPECT_EQ(weights->lm_head.data, weights->embed_tokens.data);
  const auto half = Weights::rounded(weights, config, DType::bf16);
  EXPECT_EQ(half->lm_head.data, half->embed_tokens.data);
  EXPECT_EQ(half->lm_head.dtype, DType::bf16);
}

TEST(Save, OneFileThenShardsThenOneFile) {
  const Model m("tiny-mla", DType::bf16);
  const TemporaryFolder folder;
  const auto dir = folder / "deeper/model";
  const auto reload = [&] {
    EXPECT_EQ(Config::load(dir), m.config);
    LoadReport report;
    expect_same(m.config, *m.weights, *Weights::load(dir, m.config, &report));
    EXPECT_TRUE(report.unused.empty());
    return report.files;
  };
  m.weights->save(dir, m.config);
  EXPECT_EQ(reload(), 1);

  const std::int64_t bytes = m.weights->bytes(m.config);
  m.weights->save(dir, m.config, bytes / 3);
  EXPECT_FALSE(std::filesystem::exists(dir / "model.safetensors")) << "it would be read in place of the shards";
  EXPECT_GE(reload(), 3);
  const json index = json::parse(read_text_file(dir / "model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], bytes);
  EXPECT_EQ(index["weight_map"].size(), m.tensors.size());
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    EXPECT_TRUE(shard.get<std::string>().starts_with("model-0000")) << shard;
    EXPECT_LE(static_cast<std::int64_t>(std::filesystem::file_size(dir / shard.get<std::string>())),
              bytes / 3 + 100'000);
  }

  m.weights->save(dir, m.config, 1);  // a shard of its own for each tensor
  EXPECT_EQ(reload(), static_cast<std::int64_t>(m.tensors.size()));
  m.weights->save(dir, m.config);
  EXPECT_EQ(reload(), 1);
}

TEST(Save, ATiedHeadIsNotWritten) {
  Config config = Config::preset("tiny-mha");
  config.tie_word_embeddings = true;
  const auto weights = Weights::random(config, kSeed, DType::f32);
  const TemporaryFolder folder;
  weights->save(folder.path(), config);
  EXPECT_FALSE(SafetensorsFile(folder / "model.safetensors").find("lm_head.weight"));
  expect_same(config, *weights, *Weights::load(folder.path(), config));
  Config untied = config;
  untied.tie_word_embeddings = false;
  EXPECT_EQ(weights->bytes(config) + weights->embed_tokens.bytes(),
            Weights::random(untied, kSeed, DType::f32)->bytes(untied));
}

TEST(Save, SaysWhereItCannotWrite) {
  const Model m;
  const TemporaryFolder folder;
  write_text_file(folder / "file", "in the way");
  const auto message = message_of<Error>([&] { m.weights->save(folder / "file", m.config); });
  EXPECT_NE(message.find("file"), std::string::npos) << message;
}

/// A system in a folder: its /proc/meminfo, the groups of a process, and files of groups.
struct FakeSystem {
  TemporaryFolder folder;
  FakeSystem(std::int64_t available_kib, const std::string& groups) {
    write("proc/meminfo", concat("MemTotal: 99999999 kB\nMemAvailable:   ", available_kib, " kB\n"));
    write("proc/self/cgroup", groups);
  }
  void write(const std::string& file, const std::string& text) const {
    std::filesystem::create_directories((folder / file).parent_path());
    write_text_file(folder / file, text);
  }
  std::int64_t available() const { return available_memory_bytes(folder.path()).value(); }
};

TEST(Memory, IsWhatMeminfoSaysWithoutALimit) {
  EXPECT_EQ(FakeSystem(1000, "0::/\n").available(), 1'024'000);
  const FakeSystem v2(1000, "0::/a\n");
  v2.write("sys/fs/cgroup/a/memory.max", "max\n");
  v2.write("sys/fs/cgroup/a/memory.current", "5\n");
  EXPECT_EQ(v2.available(), 1'024'000);
  const FakeSystem v1(1000, "3:cpu:/b\n4:memory:/b\n0::/\n");
  v1.write("sys/fs/cgroup/memory/b/memory.limit_in_bytes", "9223372036854771712\n");
  v1.write("sys/fs/cgroup/memory/b/memory.usage_in_bytes", "5000\n");
  EXPECT_EQ(v1.available(), 1'024'000);
  EXPECT_EQ(available_memory_bytes(TemporaryFolder().path()), std::nullopt);
}

TEST(Memory, StopsAtTheLimitOfAGroup) {
  const FakeSystem v2(1000, "0::/slice/a\n");
  v2.write("sys/fs/cgroup/slice/a/memory.max", "500000\n");
  v2.write("sys/fs/cgroup/slice/a/memory.current", "300000\n");
  v2.write("sys/fs/cgroup/slice/a/memory.stat", "anon 1\ninactive_file 40000\nactive_file 10000\n");
  EXPECT_EQ(v2.available(), 250'000) << "files that can be dropped are no use of memory";
  v2.write("sys/fs/cgroup/slice/memory.max", "400000\n");
  v2.write("sys/fs/cgroup/slice/memory.current", "390000\n");
  EXPECT_EQ(v2.available(), 10'000) << "the groups above count too";
  v2.write("sys/fs/cgroup/slice/memory.current", "410000\n");
  EXPECT_EQ(v2.available(), 0);

  const FakeSystem v1(1000, "5:cpu,memory:/x/y\n");
  v1.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "600000\n");  // a container: the group is the mount
  v1.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "100000\n");
  v1.write("sys/fs/cgroup/memory/memory.stat", "inactive_file 7\ntotal_inactive_file 50000\ntotal_active_file 0\n");
  EXPECT_EQ(v1.available(), 550'000);
}

TEST(Memory, SpellsOutTheSumThatDoesNotFit) {
  if (!available_memory_bytes()) GTEST_SKIP() << "this system does not say";
  const std::vector<MemoryPart> parts = {
      {"weights", 3'000'000'000'000'000}, {"copies", 0}, {"the cache", 1'000'000'000'000'000}};
  const auto message = message_of<Error>([&] { require_memory(parts, "a model"); });
  EXPECT_EQ(message.find("a model: memory: expected at most "), 0u) << message;
  EXPECT_NE(message.find("found 3e+06 GB for weights + 1e+06 GB for the cache = 4e+06 GB"), std::string::npos)
      << message;
  EXPECT_NO_THROW(require_memory(std::vector<MemoryPart>{{"weights", 1}}, "a model"));
}

TEST(Memory, IsAskedForFirst) {
  const auto available = available_memory_bytes();
  if (!available) GTEST_SKIP() << "this system does not say";
  EXPECT_GT(*available, 1'000'000);
  EXPECT_NO_THROW(require_memory(1, "a byte"));
  const auto message = message_of<Error>([] { allocate_pages(std::int64_t{1} << 60, "the world"); });
  EXPECT_EQ(message.find("the world: needs "), 0u) << message;
  const auto pages = allocate_pages(5000, "a page or two");
  EXPECT_EQ(static_cast<const char*>(pages.get())[4999], 0);
}

}  // namespace
}  // namespace dsv2
