// Every broken checkpoint of golden/bad_files is refused as its expectations.json says.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/error.h"
#include "model/file.h"
#include "model/weights.h"
#include "tests/temporary_folder.h"

namespace dsv2 {
namespace {

using nlohmann::json;

const std::filesystem::path kSet = std::filesystem::path(DSV2_SOURCE_DIR) / "golden/bad_files";

const json& expectations() {
  static const json j = json::parse(read_text_file(kSet / "expectations.json"));
  return j;
}

/// The good model with one file replaced, as README.md of the set describes.
void lay_out(const json& bad, const std::filesystem::path& into) {
  const std::string replaces = bad["replaces"];
  std::filesystem::copy(kSet / expectations()["base"].get<std::string>(), into,
                        std::filesystem::copy_options::recursive);
  if (replaces == "model.safetensors.index.json")
    std::filesystem::rename(into / "model.safetensors", into / "model-00001-of-00002.safetensors");
  else
    std::filesystem::remove(into / replaces);
  const auto from = kSet / bad["file"].get<std::string>();
  if (bad["id"] == "directory")
    std::filesystem::copy(from.parent_path() / replaces, into / replaces, std::filesystem::copy_options::recursive);
  else
    std::filesystem::copy(from, into / replaces);
}

void load(const std::filesystem::path& folder) { Weights::load(folder, Config::load(folder)); }

TEST(BadFiles, TheBaseIsGood) {
  EXPECT_NO_THROW(load(kSet / "base"));
  EXPECT_GE(expectations()["cases"].size(), 32u);
}

class BadFile : public ::testing::TestWithParam<std::size_t> {};

TEST_P(BadFile, IsRefusedByName) {
  const json& bad = expectations()["cases"][GetParam()];
  SCOPED_TRACE(bad.dump());
  ASSERT_EQ(bad["must"], "error");
  const testing::TemporaryFolder folder;
  lay_out(bad, folder.path());
  const auto message = testing::message_of<Error>([&] { load(folder.path()); });
  // A fault between index and shard may name either.
  std::vector<std::string> needed = {bad["replaces"].get<std::string>()};
  for (const std::string alternatives : bad["names"]) needed.push_back(alternatives);
  if (needed[0] == "model.safetensors.index.json") needed[0] += "|model-0000";
  for (const std::string& alternatives : needed) {
    bool named = false;
    for (std::size_t begin = 0; begin <= alternatives.size();) {
      const std::size_t end = std::min(alternatives.find('|', begin), alternatives.size());
      named |= message.find(alternatives.substr(begin, end - begin)) != std::string::npos;
      begin = end + 1;
    }
    EXPECT_TRUE(named) << "expected " << alternatives << " in: " << message;
  }
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

std::string id_of(const ::testing::TestParamInfo<std::size_t>& param) {
  return expectations()["cases"][param.param]["id"];
}
INSTANTIATE_TEST_SUITE_P(Set, BadFile, ::testing::Range(std::size_t{0}, expectations()["cases"].size()), id_of);

}  // namespace
}  // namespace dsv2
