// The gate in characters: passes the trained models, rejects a decoder that computes something else, and says which
// line.
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "harness/backends.h"
#include "harness/ocr_task.h"
#include "model/error.h"
#include "model/weights.h"
#include "optimized/cpu/backend.h"
#include "run_dsv2.h"

namespace dsv2::harness {
namespace {

namespace fs = std::filesystem;
using testing::message_of;
using testing::run_dsv2;
using testing::TemporaryFolder;

const fs::path kHome = fs::path(DSV2_SOURCE_DIR) / "golden/tiny_ocr";

TEST(EditDistance, CountsInsertionsDeletionsAndReplacements) {
  EXPECT_EQ(edit_distance("", ""), 0);
  EXPECT_EQ(edit_distance("abc", ""), 3);
  EXPECT_EQ(edit_distance("", "ab"), 2);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("0O1l", "O01l"), 2);
}

TEST(OcrScore, IsOfAllCharactersTogether) {
  const OcrScore score = OcrScore::of({"abcdefgh", "xy"}, {"abcdefgh", "x"});
  EXPECT_DOUBLE_EQ(score.cer, 0.1);
  EXPECT_DOUBLE_EQ(score.exact, 0.5);
}

/// A few held-out lines of one of the models, with torch's answers.
struct Task {
  explicit Task(const std::string& name) : model(kHome / name), config(Config::load(model)), processor(model, config) {
    set = OcrSet::load(kHome / "heldout/lines", processor);
    answers =
        OcrAnswers::load(kHome / ("heldout/lines." + name + ".safetensors"), set.pictures.size(), config.vocab_size);
    keep(kLines);
    weights = Weights::load(model, config);
  }
  void keep(std::size_t lines) {
    set.files.resize(lines), set.fonts.resize(lines), set.texts.resize(lines), set.pictures.resize(lines);
    answers.ids.resize(lines), answers.logits.resize(lines);
  }
  Record check(const Config& computed, DType dtype = DType::f32, const Backend& backend = cpu::backend()) const {
    Options options;
    options.dtype = dtype, options.kv_dtype = dtype == DType::f32 ? DType::f32 : DType::bf16, options.threads = 2;
    const auto decoder = backend.create(computed, weights, options);
    return check_ocr("tiny", set, answers, processor, *decoder, backend).front();
  }

  static constexpr std::size_t kLines = 12;
  fs::path model;
  Config config;
  OcrProcessor processor;
  OcrSet set;
  OcrAnswers answers;
  std::shared_ptr<const Weights> weights;
};

class OcrGate : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Models, OcrGate, ::testing::Values("mha", "mla"),
                         [](const auto& model) { return std::string(model.param); });

TEST_P(OcrGate, PassesTheDecoder) {
  const Task task(GetParam());
  const Record r = task.check(task.config);
  EXPECT_EQ(r.status, Status::passed) << r.reason;
  EXPECT_EQ(r.ocr.at("lines"), Task::kLines);
  EXPECT_EQ(r.ocr.at("otherwise_than_torch"), 0);
  EXPECT_EQ(r.ocr.at("top1"), 1.0);
  EXPECT_LT(r.ocr.at("kl_max").get<double>(), 1e-9);
}

// Decode steps as users run them, in fused kernels, with heads that are wide enough for all of those.
TEST_P(OcrGate, PassesTheCudaKernels) {
  const Backend& simulated = find_backend("cuda-sim");
  if (const auto why = simulated.unavailable()) GTEST_SKIP() << *why;
  Task task(GetParam());
  task.keep(4);  // few enough rows
  const Record r = task.check(task.config, DType::f32, simulated);
  EXPECT_EQ(r.status, Status::passed) << r.reason;
  EXPECT_EQ(r.ocr.at("otherwise_than_torch"), 0);
  EXPECT_TRUE(simulated.findings().empty());
}

TEST_P(OcrGate, RejectsAnotherAngle) {
  const Task task(GetParam());
  Config other = task.config;
  other.rope_theta *= 1.5;
  const Record r = task.check(other);
  EXPECT_EQ(r.status, Status::failed);
  ASSERT_EQ(r.failures.size(), 2u);
  EXPECT_EQ(r.failures[1].name, "tokens");
  EXPECT_NE(r.failures[1].reason.find("lines read otherwise than by torch, first"), std::string::npos);
}

TEST_P(OcrGate, RejectsInLowPrecisionWhatCostsCharacters) {
  const Task task(GetParam());
  Config other = task.config;
  other.routed_scaling_factor = 8;
  const Record r = task.check(other, DType::bf16);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_NE(r.reason.find("character error rate"), std::string::npos) << r.reason;
  EXPECT_GT(r.ocr.at("kl_mean").get<double>(), 0.01);
}

TEST(OcrGate, RejectsOneTokenOfTorchChanged) {
  Task task("mha");
  ASSERT_GT(task.answers.ids[3].size(), 2u);
  std::int64_t& id = task.answers.ids[3][1];
  id = id == 50 ? 51 : 50;
  const Record r = task.check(task.config);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_NE(r.reason.find("1 of 12 lines"), std::string::npos) << r.reason;
  EXPECT_NE(r.reason.find("003.png"), std::string::npos) << r.reason;
}

TEST(OcrGate, CountsATieOfTorchsAndDoesNotExcuseWhatIsNone) {
  Task task("mha");
  // As if torch had chosen the other of two tokens that it found equally likely, in bits.
  const std::size_t V = static_cast<std::size_t>(task.config.vocab_size), at = 1;
  std::int64_t& id = task.answers.ids[3][at];
  const std::int64_t chosen = id, other = id == 50 ? 51 : 50;
  float* row = task.answers.logits[3].data() + at * V;
  const float apart = row[chosen] - row[other];
  row[other] = row[chosen];
  id = other;
  EXPECT_GT(apart, 0.1f);
  const Record tied = task.check(task.config);
  EXPECT_EQ(tied.status, Status::passed) << tied.reason;
  EXPECT_EQ(tied.ties, 1);
  row[other] += 0.01f;  // preferred by more than rounding: no tie
  EXPECT_EQ(task.check(task.config).status, Status::failed);
}

TEST(OcrGate, NanIsNoReading) {
  Task task("mha");
  task.answers.logits[0][5] = std::numeric_limits<float>::quiet_NaN();
  const Record r = task.check(task.config);
  EXPECT_TRUE(r.ocr.at("kl_max").is_null());
  std::ostringstream table;
  print_ocr(std::vector<Record>{r}, true, table);
  EXPECT_NE(table.str().find("nan"), std::string::npos);
}

TEST(OcrProcessor, RefusesWhatItCannotRead) {
  const Task task("mha");
  EXPECT_EQ(
      task.processor.fitted({.width = 3200, .height = 320, .grey = std::vector<std::uint8_t>(3200 * 320)}, "f").width,
      320);
  const Picture wide{.width = 330, .height = 32, .grey = std::vector<std::uint8_t>(330 * 32)};
  EXPECT_EQ(message_of<Error>([&] { task.processor.fitted(wide, "f.png"); }),
            "f.png: picture: expected a line at most 320 pixels wide at a height of 32, found 330 x 32");
}

/// A copy of a model whose file `name` was edited.
struct EditedModel {
  template <class Edit>
  EditedModel(const std::string& name, const Edit& edit) {
    for (const auto& entry : fs::directory_iterator(kHome / "mha")) fs::copy(entry.path(), folder.path());
    const fs::path file = folder / name;
    write_text_file(file, edit(nlohmann::json::parse(read_text_file(file))).dump());
  }
  std::string why() const {
    return message_of<Error>([&] { OcrProcessor(folder.path(), Config::load(folder.path())); });
  }
  TemporaryFolder folder;
};

TEST(OcrProcessor, NamesWhatItsFilesGetWrong) {
  using nlohmann::json;
  const auto set = [](const char* key, const json& value) {
    return [=](json j) {
      j[key] = value;
      return j;
    };
  };
  EXPECT_NE(EditedModel("processor_config.json", set("patch_width", 7)).why().find("image_width: expected a multiple"),
            std::string::npos);
  EXPECT_NE(EditedModel("processor_config.json", set("patch_width", -1)).why().find("patch_width: expected 1 to"),
            std::string::npos);
  EXPECT_NE(EditedModel("processor_config.json", set("bos", "<none>")).why().find("bos: expected a token"),
            std::string::npos);
  EXPECT_NE(EditedModel("processor_config.json", set("image_height", 16)).why().find("projector.layers.0.weight"),
            std::string::npos);
  EXPECT_NE(EditedModel("processor_config.json", set("background", "white")).why().find("expected lower median"),
            std::string::npos);
  EXPECT_NE(EditedModel("vocab.json", [](json j) { return json(j.at(0)); }).why().find("expected a list of 100 tokens"),
            std::string::npos);
  EXPECT_NE(EditedModel("vocab.json",
                        [](json j) {
                          j[5] = 5;
                          return j;
                        })
                .why()
                .find("expected strings, found 5"),
            std::string::npos);
}

std::string picture(int number) {
  return (kHome / "heldout/lines" / ("00" + std::to_string(number) + ".png")).string();
}

TEST(Read, PrintsTheTextAloneAndByFile) {
  const Task task("mha");
  const auto one = run_dsv2("read " + picture(0));
  EXPECT_EQ(one.code, 0);
  EXPECT_EQ(one.out, task.processor.text(task.answers.ids[0]) + "\n");
  EXPECT_NE(one.err.find("tokens/s"), std::string::npos);
  const auto two = run_dsv2("read " + picture(1) + " " + picture(2) + " --dtype bf16 --backend cpu");
  EXPECT_EQ(two.code, 0);
  EXPECT_NE(two.out.find("002.png\t" + task.processor.text(task.answers.ids[2]) + "\n"), std::string::npos) << two.out;
}

TEST(Read, JsonHasEachTokensProbability) {
  const auto run = run_dsv2("read --json - --backend reference " + picture(0));
  ASSERT_EQ(run.code, 0) << run.err;
  const auto json = nlohmann::json::parse(run.out);
  const auto& line = json.at("pictures").at(0);
  std::string text;
  for (const auto& token : line.at("tokens")) {
    EXPECT_LE(token.at("log_probability").get<double>(), 0);
    EXPECT_GE(token.at("margin").get<double>(), 0);
    if (token.at("text").get<std::string>().size() == 1) text += token.at("text").get<std::string>();
  }
  EXPECT_EQ(text, line.at("text"));
  EXPECT_EQ(line.at("tokens").back().at("id"), 2);  // the end
  for (const auto& at : line.at("close"))
    EXPECT_LT(line.at("tokens").at(at.get<std::size_t>()).at("margin").get<double>(), json.at("close_margin"));
}

TEST(Read, BadInputIsOneLine) {
  const TemporaryFolder folder;
  const std::string text = (folder / "text.png").string();
  write_text_file(text, "no picture");
  for (const std::string& arguments :
       {std::string("read no/such.png"), "read " + folder.path().string() + "/none", "read " + text,
        "read " + picture(0) + " --dtype f8", "read " + picture(0) + " --model " + folder.path().string()}) {
    const auto run = run_dsv2(arguments);
    EXPECT_EQ(run.code, 2) << arguments;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << arguments << ": " << run.err;
    EXPECT_EQ(run.out, "");
  }
}

}  // namespace
}  // namespace dsv2::harness
