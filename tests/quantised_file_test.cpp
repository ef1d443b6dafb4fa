// Quantised checkpoints: what quantize and init write, what loading makes of them, and of damaged ones.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/checksum.h"
#include "model/file.h"
#include "model/quantise_checkpoint.h"
#include "model/quantised.h"
#include "model/random.h"
#include "model/safetensors.h"
#include "model/weights.h"
#include "run_dsv2.h"
#include "temporary_folder.h"

namespace dsv2 {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using testing::message_of;
using testing::Outcome;
using testing::TemporaryFolder;

constexpr std::uint64_t kSeed = 11;

Outcome dsv2(const std::string& arguments) { return testing::run_dsv2(arguments); }

/// Exit code 2, and one line that holds every word.
void expect_refused(const Outcome& run, const std::vector<std::string>& words) {
  EXPECT_EQ(run.code, 2) << run.out << run.err;
  for (const std::string& word : words) EXPECT_NE(run.err.find(word), std::string::npos) << word << " in: " << run.err;
  EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
}

bool same_bytes(const TensorView& a, const TensorView& b) {
  return a.dtype == b.dtype && a.shape == b.shape &&
         std::memcmp(a.data, b.data, static_cast<std::size_t>(a.bytes())) == 0;
}

void expect_same(const Config& config, const Weights& a, const Weights& b) {
  std::vector<TensorView> views;
  for_each_tensor(config, a, [&](const std::string&, const Shape&, const TensorView& v) { views.push_back(v); });
  std::size_t i = 0;
  for_each_tensor(config, b, [&](const std::string& name, const Shape&, const TensorView& v) {
    EXPECT_TRUE(same_bytes(v, views[i++])) << name;
  });
}

std::string all_bytes(const fs::path& file) { return read_text_file(file); }

/// Where the data of a safetensors file begin.
std::size_t data_begin(const std::string& bytes) {
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  return static_cast<std::size_t>(length) + 8;
}

/// A checkpoint drawn in f32 and quantised to `dtype`, in folders of its own.
struct Made {
  TemporaryFolder folder;
  Config config;
  fs::path source = folder / "source", made = folder / "made";
  QuantiseReport report;

  explicit Made(DType dtype, const char* preset = "tiny-mla", QuantiseOptions options = {}) {
    config = Config::preset(preset);
    Weights::random(config, kSeed, DType::f32)->save(source, config);
    options.dtype = dtype;
    report = quantise_checkpoint(source, config, options, made);
  }
  fs::path file() const { return made / "model.safetensors"; }
  /// Writes it again with `change` applied to its header and data, the header's length adjusted.
  template <class Change>
  void rewrite(Change&& change) const {
    const std::string bytes = all_bytes(file());
    std::string header = bytes.substr(8, data_begin(bytes) - 8), data = bytes.substr(data_begin(bytes));
    change(header, data);
    const std::uint64_t length = header.size();
    std::string out(reinterpret_cast<const char*>(&length), sizeof length);
    write_text_file(file(), out + header + data);
  }
  std::string load_message() const {
    return message_of<Error>([&] { Weights::load(made, config); });
  }
};

void replace(std::string& text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
}

TEST(Checksum, DoesNotDependOnHowTheBytesArrive) {
  std::vector<std::byte> bytes((std::size_t{1} << 20) * 3 + 77);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(random_bits(3, static_cast<int>(i)));
  Checksum whole;
  whole.update(bytes);
  for (const std::size_t step : {std::size_t{999'983}, std::size_t{1} << 20, (std::size_t{1} << 21) + 1}) {
    Checksum pieces;
    for (std::size_t at = 0; at < bytes.size(); at += step)
      pieces.update(std::span(bytes).subspan(at, std::min(step, bytes.size() - at)));
    EXPECT_EQ(pieces.digest(), whole.digest()) << step;
  }
  bytes[(std::size_t{1} << 20) * 2] ^= std::byte{1};
  Checksum other;
  other.update(bytes);
  EXPECT_NE(other.digest(), whole.digest());
  // XXH3-64 of nothing, as xxHash's own tests have it.
  EXPECT_EQ(checksum_text(Checksum().digest()), "xxh3-64:2d06800538d394c2");
}

TEST(QuantisedFile, HoldsWhatRoundedGives) {
  for (const char* preset : {"tiny-mha", "tiny-mla"}) {
    for (const DType dtype : {DType::i8, DType::i4}) {
      const Made m(dtype, preset);
      const auto loaded = Weights::load(m.made, m.config);
      expect_same(m.config, *Weights::rounded(Weights::load(m.source, m.config), m.config, dtype), *loaded);
      EXPECT_EQ(loaded->bytes(m.config), m.report.bytes);
      EXPECT_EQ(Config::load(m.made), m.config);
      EXPECT_EQ(Checkpoint(m.made).quantised_dtype(m.config), dtype);
      EXPECT_EQ(Checkpoint(m.source).quantised_dtype(m.config), std::nullopt);
    }
  }
}

TEST(QuantisedFile, IsUsedWhereItIsMapped) {
  const Made m(DType::i4);
  const auto weights = Weights::load(m.made, m.config);
  for_each_tensor(m.config, *weights, [&](const std::string& tensor, const Shape& shape, const TensorView& v) {
    EXPECT_EQ(v.shape, shape) << tensor;
    EXPECT_EQ(v.dtype, is_kept(tensor, shape) ? DType::f32 : DType::i4) << tensor;
    if (!is_quantised(v.dtype)) return;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(v.data) % 64, 0u) << tensor;
  });
  EXPECT_EQ(data_begin(all_bytes(m.file())) % 64, 0u);
}

TEST(QuantisedFile, IsSafetensorsWithTheDocumentedMetadata) {
  const Made m(DType::i4);
  const SafetensorsFile file(m.file());
  EXPECT_EQ(file.metadata().at("format"), "dsv2-quantised");
  EXPECT_EQ(file.metadata().at("version"), "1");
  EXPECT_EQ(file.metadata().at("group"), "32");
  Checksum sum;
  sum.update(file.data());
  EXPECT_EQ(file.metadata().at("checksum"), checksum_text(sum.digest()));
  const SafetensorsEntry* const entry = file.find("model.embed_tokens.weight");
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->dtype, "U8");
  EXPECT_EQ(entry->shape,
            (Shape{(m.config.vocab_size + 15) / 16, quantised_panel_bytes(DType::i4, m.config.hidden_size)}));
}

TEST(QuantisedFile, ReportsTheErrorOfWhatItWrote) {
  const Made m(DType::i4);
  const auto from = Weights::load(m.source, m.config), to = Weights::load(m.made, m.config);
  double error = 0, norm = 0, worst = 0;
  std::vector<TensorView> views;
  for_each_tensor(m.config, *from, [&](const std::string&, const Shape&, const TensorView& v) { views.push_back(v); });
  std::size_t i = 0;
  for_each_tensor(m.config, *to, [&](const std::string&, const Shape&, const TensorView& v) {
    const TensorView& source = views[i++];
    if (v.dtype == source.dtype) return;
    const auto x = widen<double>(source), y = widen<double>(v);
    double e = 0, n = 0;
    for (std::size_t k = 0; k < x.size(); ++k) e += (x[k] - y[k]) * (x[k] - y[k]), n += x[k] * x[k];
    error += e, norm += n, worst = std::max(worst, std::sqrt(e / n));
  });
  EXPECT_NEAR(m.report.error, std::sqrt(error / norm), 1e-9);
  EXPECT_NEAR(m.report.worst.error, worst, 1e-9);
  EXPECT_GT(m.report.worst.error, 0.05);
}

TEST(QuantisedFile, TheHeadHasADtypeOfItsOwn) {
  for (const DType head : {DType::bf16, DType::i8}) {
    const Made m(DType::i4, "tiny-mla", {.head_dtype = head});
    const auto weights = Weights::load(m.made, m.config);
    EXPECT_EQ(weights->lm_head.dtype, head);
    EXPECT_EQ(weights->embed_tokens.dtype, DType::i4);
    EXPECT_TRUE(same_bytes(weights->lm_head, convert(Weights::load(m.source, m.config)->lm_head, head).view()));
    EXPECT_EQ(Checkpoint(m.made).quantised_dtype(m.config), DType::i4);
  }
}

TEST(QuantisedFile, ShardsAreSignedOneByOne) {
  const Made m(DType::i8);
  const fs::path dir = m.folder / "shards";
  const auto whole = Weights::load(m.made, m.config);
  whole->save(dir, m.config, whole->bytes(m.config) / 3);
  LoadReport report;
  expect_same(m.config, *whole, *Weights::load(dir, m.config, &report));
  EXPECT_GE(report.files, 3);
  // A shard of ordinary tensors among them is refused: nobody vouches for it.
  fs::path last;
  for (const auto& f : fs::directory_iterator(dir))
    if (f.path().extension() == ".safetensors") last = std::max(last, f.path());
  std::string bytes = all_bytes(last);
  replace(bytes, "dsv2-quantised", "dsv2-quantisee");
  write_text_file(last, bytes);
  const auto message = message_of<Error>([&] { Weights::load(dir, m.config); });
  EXPECT_NE(message.find(last.filename().string()), std::string::npos) << message;
  EXPECT_NE(message.find("__metadata__ \"format\": expected "), std::string::npos) << message;
}

TEST(QuantisedFile, DrawnOnDiskIsDrawnInMemory) {
  for (const DType dtype : {DType::bf16, DType::i8, DType::i4}) {
    const TemporaryFolder folder;
    const Config config = Config::preset("tiny-mha");
    const std::int64_t bytes = Weights::save_random(folder / "drawn", config, 5, dtype, {}, 60'000);
    const auto drawn = Weights::random(config, 5, dtype);
    EXPECT_EQ(bytes, drawn->bytes(config));
    LoadReport report;
    expect_same(config, *drawn, *Weights::load(folder / "drawn", config, &report));
    EXPECT_GT(report.files, 1);
  }
}

TEST(QuantisedFile, OneFlippedBitAnywhereInTheDataIsFound) {
  const Made m(DType::i4);
  const std::string right = all_bytes(m.file());
  const std::size_t begin = data_begin(right), size = right.size() - begin;
  for (const std::size_t at : {begin, begin + size / 3, begin + size / 2, right.size() - 1}) {
    std::string wrong = right;
    wrong[at] = static_cast<char>(wrong[at] ^ 1 << at % 8);
    write_text_file(m.file(), wrong);
    const std::string message = m.load_message();
    EXPECT_NE(message.find("model.safetensors: checksum of the data: expected \"xxh3-64:"), std::string::npos)
        << at << message;
  }
  write_text_file(m.file(), right);
  EXPECT_EQ(m.load_message(), "");
}

TEST(QuantisedFile, WhatItDoesNotKnowIsRefusedByName) {
  struct Wrong {
    const char *from, *to;
    std::vector<std::string> words;
  };
  for (const Wrong& w : std::vector<Wrong>{
           {R"("version":"1")", R"("version":"2")", {"__metadata__ \"version\": expected \"1\", found \"2\""}},
           {R"("group":"32")", R"("group":"64")", {"__metadata__ \"group\": expected \"32\", found \"64\""}},
           {R"("group":"32")", R"("group":"128")", {"\"group\": expected \"32\", found \"128\""}},
           {R"("group":"32")", R"("gruop":"32")", {"\"group\": expected \"32\", found no such key"}},
           {R"("checksum":")", R"("checkers":")", {"__metadata__ \"checksum\": expected the checksum"}},
           {R"("xxh3-64:)", R"("xxh3-32:)", {"checksum of the data: expected \"xxh3-32:"}},
           {"dsv2-quantised", "pt", {"embed_tokens.weight: expected shape [128, 64], found [8, 576]"}}}) {
    const Made m(DType::i4);
    m.rewrite([&](std::string& header, std::string&) { replace(header, w.from, w.to); });
    const std::string message = m.load_message();
    EXPECT_NE(message.find("model.safetensors: "), std::string::npos) << message;
    for (const std::string& word : w.words) EXPECT_NE(message.find(word), std::string::npos) << word << ": " << message;
  }
}

TEST(QuantisedFile, PanelsThatFitNeitherDtypeAreRefused) {
  for (const char* shape : {"[9,512]", "[4608]", "[4,1152]", "[16,288]", "[8,576,1]"}) {
    const Made copy(DType::i4);
    copy.rewrite([&](std::string& header, std::string&) { replace(header, "[8,576]", shape); });
    const std::string message = copy.load_message();
    EXPECT_NE(
        message.find("model.embed_tokens.weight: expected 8 panels of 576 (int4) or 1088 bytes (int8) for a matrix"
                     " of shape [128, 64], found "),
        std::string::npos)
        << shape << message;
  }
}

TEST(QuantisedFile, PanelsThatAreNotAlignedAreRefused) {
  const Made m(DType::i4);
  m.rewrite([](std::string& header, std::string&) { header += ' '; });
  const std::string message = m.load_message();
  EXPECT_NE(message.find("expected panels that begin at a multiple of 64 bytes, found them at "), std::string::npos)
      << message;
}

TEST(QuantisedFile, IsRefusedWhenCutShort) {
  const Made m(DType::i4);
  const std::string bytes = all_bytes(m.file());
  for (const std::size_t size : {bytes.size() - 1, data_begin(bytes), std::size_t{100}, std::size_t{7}}) {
    write_text_file(m.file(), bytes.substr(0, size));
    EXPECT_NE(m.load_message().find("model.safetensors: "), std::string::npos) << size;
  }
}

TEST(QuantisedFile, WeightsThatAreNotFiniteAreRefusedByName) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    const TemporaryFolder folder;
    const Config config = Config::preset("tiny-mla");
    const auto weights = Weights::random(config, kSeed, DType::f32);
    const TensorView view = weights->layers[1].experts[3].down_proj.weight;
    const_cast<float*>(static_cast<const float*>(view.data))[77] = bad;
    weights->save(folder / "source", config);
    const auto message = message_of<Error>([&] { quantise_checkpoint(folder / "source", config, {}, folder / "out"); });
    EXPECT_NE(message.find("model.layers.1.mlp.experts.3.down_proj.weight: expected finite values, found "),
              std::string::npos)
        << message;
    EXPECT_NE(message.find("at element 77"), std::string::npos) << message;
    EXPECT_TRUE(fs::is_empty(folder / "out")) << "no part of a checkpoint is left";
  }
}

TEST(QuantisedFile, NoShardAppearsBeforeAllAreWritten) {
  const TemporaryFolder folder;
  const Config config = Config::preset("tiny-mla");
  const auto weights = Weights::random(config, kSeed, DType::f32);
  const_cast<float*>(static_cast<const float*>(weights->lm_head.data))[0] = std::numeric_limits<float>::infinity();
  weights->save(folder / "source", config);
  EXPECT_THROW(quantise_checkpoint(folder / "source", config, {}, folder / "out", {}, 10'000), Error);
  EXPECT_TRUE(fs::is_empty(folder / "out"));
}

struct Folders {
  TemporaryFolder folder;
  std::string source = (folder / "source").string(), out = (folder / "out").string();
  Folders() {
    const Config config = Config::preset("tiny-mla");
    Weights::save_random(source, config, kSeed, DType::bf16);
  }
};

TEST(QuantizeCommand, WritesACheckpointThatTheOthersTake) {
  const Folders f;
  const std::string report = (f.folder / "r.json").string();
  const Outcome run = dsv2("quantize " + f.source + " --dtype int4 --out " + f.out + " --json " + report);
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_NE(run.out.find("relative L2 error of the weights"), std::string::npos) << run.out;
  const Json j = Json::parse(read_text_file(report));
  const Config config = Config::load(f.out);
  EXPECT_EQ(j["bytes"], Weights::load(f.out, config)->bytes(config));
  EXPECT_GT(j["relative_l2"].get<double>(), 0.05);
  EXPECT_LT(j["relative_l2"].get<double>(), 0.1);
  EXPECT_EQ(j["tensors"].size(), 74u);

  const Outcome inspect = dsv2("inspect " + f.out);
  EXPECT_EQ(inspect.code, 0) << inspect.err;
  EXPECT_NE(inspect.out.find("quantised   int4, groups of 32"), std::string::npos) << inspect.out;
  const Outcome check = dsv2("check --bisect --model " + f.out);
  EXPECT_EQ(check.code, 0) << check.out << check.err;
  EXPECT_NE(check.out.find("int4"), std::string::npos) << check.out;
  const Outcome generate = dsv2("generate --backend reference --model " + f.out + " --prompt-ids 1,2,3");
  EXPECT_EQ(generate.code, 0) << generate.err;
  EXPECT_EQ(generate.out,
            dsv2("generate --backend reference --dtype int4 --model " + f.out + " --prompt-ids 1,2,3").out);
}

TEST(QuantizeCommand, RefusesInOneLine) {
  const Folders f;
  const auto quantize = [&](const std::string& rest) { return dsv2("quantize " + rest); };
  const std::string to = " --out " + f.out;
  expect_refused(quantize(f.source + " --dtype int3" + to), {"--dtype: expected", "int4", "found int3"});
  expect_refused(quantize(f.source + " --dtype f32" + to), {"--dtype: expected int8 or int4, found f32"});
  expect_refused(quantize(f.source + " --dtype int4 --head-dtype f32" + to), {"--head-dtype: expected bf16"});
  expect_refused(quantize(f.source + " --dtype int4 --out " + f.source),
                 {"--out", "source", "expected another folder"});
  expect_refused(quantize((f.folder / "none").string() + " --dtype int4" + to), {"none", "found nothing there"});
  write_text_file(f.folder / "file", "in the way");
  expect_refused(quantize(f.source + " --dtype int4 --out " + (f.folder / "file").string()), {"expected a folder"});
  expect_refused(quantize(f.source + " --dtype int4 --out " + (f.folder / "file/deeper").string()),
                 {"file/deeper", "cannot be made"});
  expect_refused(quantize(f.source + " --dtype int4 --out /proc/self/made"), {"/proc/self/made"});
  ASSERT_EQ(quantize(f.source + " --dtype int4" + to).code, 0);
  expect_refused(quantize(f.source + " --dtype int4" + to), {f.out, "--force"});
  expect_refused(quantize(f.out + " --dtype int8 --out " + (f.folder / "twice").string()),
                 {"expected a checkpoint in floats, found one that is quantised already"});
  for (const char* dtype : {"int8", "bf16", "f32"})
    expect_refused(dsv2("generate --model " + f.out + " --prompt-ids 1 --dtype " + dtype),
                   {"--dtype: expected int4, as " + f.out + " is stored, found " + dtype});
  expect_refused(dsv2("check --bisect --model " + f.out + " --dtype f32"), {"--dtype: expected int4", "found f32"});
  expect_refused(dsv2("quality --model " + f.out), {"expected a checkpoint in floats", "found one in int4"});
  expect_refused(dsv2("quality --model " + f.source + " --dtype q5_1"),
                 {"--dtype: expected one of bf16", "found q5_1"});
  expect_refused(dsv2("quality --model " + f.source + " --layers 9"), {"--layers: expected at most 3, found 9"});
  expect_refused(dsv2("bench --model " + f.out + " --dtype int4,int8"), {"--dtype: expected int4", "found int8"});
}

TEST(QuantizeCommand, ATiedHeadHasNoDtypeOfItsOwn) {
  const TemporaryFolder folder;
  Config config = Config::preset("tiny-mha");
  config.tie_word_embeddings = true;
  Weights::save_random(folder / "source", config, 1, DType::bf16);
  const std::string from = (folder / "source").string(), to = " --out " + (folder / "out").string();
  expect_refused(dsv2("quantize " + from + " --dtype int4 --head-dtype int8" + to),
                 {"--head-dtype: expected a model with a head of its own, found one tied"});
  EXPECT_EQ(dsv2("quantize " + from + " --dtype int4" + to).code, 0);
  const auto weights = Weights::load(folder / "out", config);
  EXPECT_EQ(weights->lm_head.data, weights->embed_tokens.data);
}

TEST(QuantizeCommand, AFullDiskLeavesNothing) {
  // A limit on the size of files fails as a full disk does: in the middle of writing.
  const Folders f;
  const TemporaryFolder folder;
  const std::string err = (folder / "err").string();
  const std::string line = "trap '' XFSZ; ulimit -f 64; exec " + std::string(DSV2_BINARY) + " quantize " + f.source +
                           " --dtype int8 --out " + f.out + " 2>" + err;
  const int status = std::system(("bash -c \"" + line + "\"").c_str());
  EXPECT_EQ(WEXITSTATUS(status), 2);
  const std::string message = read_text_file(err);
  EXPECT_NE(message.find("model.safetensors: cannot be written: "), std::string::npos) << message;
  EXPECT_TRUE(fs::is_empty(f.out));
}

TEST(InitCommand, DrawsQuantisedCheckpoints) {
  const TemporaryFolder folder;
  const std::string out = (folder / "made").string();
  const Outcome run = dsv2("init --preset tiny-mla --seed 3 --dtype int4 --out " + out);
  ASSERT_EQ(run.code, 0) << run.err;
  const Config config = Config::load(out);
  expect_same(config, *Weights::random(config, 3, DType::i4), *Weights::load(out, config));
}

}  // namespace
}  // namespace dsv2
