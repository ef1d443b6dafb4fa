#include "model/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "model/error.h"
#include "tests/temporary_folder.h"

namespace dsv2 {
namespace {

using testing::message_of;
using testing::TemporaryFolder;

const std::filesystem::path kGolden = std::filesystem::path(DSV2_SOURCE_DIR) / "golden";

/// A file of the format: the header's length, the header, `data_bytes` bytes that count up.
std::string file_of(const std::string& header, std::size_t data_bytes = 0) {
  const std::uint64_t length = header.size();
  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  file += header;
  for (std::size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file)), "the_file");
}
std::string refusal(const std::string& file) {
  return message_of<Error>([&] { parse(file); });
}

TEST(Safetensors, EveryDtypeSurvivesTheRoundTrip) {
  const TemporaryFolder folder;
  const auto f64 = Tensor::from<double>(std::vector<double>{1.5, -2e300}, {2});
  const auto f32 = Tensor::from<float>(std::vector<float>{1, 2, 3, 4, 5, 6}, {2, 3});
  const auto bf16 = convert(f32.view(), DType::bf16);
  const auto f16 = convert(f32.view(), DType::f16);
  const auto i64 = Tensor::from<std::int64_t>(std::vector<std::int64_t>{-7}, {});
  const auto i8 = Tensor::from<std::int8_t>(std::vector<std::int8_t>{1, -2, 3}, {3});
  const Tensor none(DType::f32, {0, 4});
  const std::vector<NamedTensor> tensors = {{"i8", i8.view()},           {"bf16", bf16.view()}, {"none", none.view()},
                                            {"f64", f64.view()},         {"f16", f16.view()},   {"i64", i64.view()},
                                            {"f32 \"q\" \n", f32.view()}};
  write_safetensors(folder / "t.safetensors", tensors, {{"format", "pt"}, {"who", "a test"}});

  const SafetensorsFile file(folder / "t.safetensors");
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}, {"who", "a test"}}));
  EXPECT_EQ(file.names().size(), tensors.size());
  for (const NamedTensor& t : tensors) {
    const SafetensorsEntry* const entry = file.find(t.name);
    ASSERT_TRUE(entry) << t.name;
    EXPECT_EQ(entry->begin % (bits(t.view.dtype) / 8), 0) << t.name << " is not aligned";
    const TensorView view = file.view(t.name);
    EXPECT_EQ(view.dtype, t.view.dtype) << t.name;
    EXPECT_EQ(view.shape, t.view.shape) << t.name;
    EXPECT_EQ(std::memcmp(view.data, t.view.data, static_cast<std::size_t>(view.bytes())), 0) << t.name;
  }
  EXPECT_FALSE(file.find("other"));
  EXPECT_THROW(file.view("other"), Error);
}

TEST(Safetensors, AMatrixOfBytesIsNoQuantisedMatrix) {
  const TemporaryFolder folder;
  const std::vector<std::byte> bytes(6);
  for (const char* word : {"I8", "U8"}) {
    SafetensorsWriter writer(folder / "t.safetensors", std::vector<SafetensorsEntry>{{"x", word, {2, 3}, 0, 6}}, {});
    writer.write(bytes);
    writer.commit();
    const SafetensorsFile file(folder / "t.safetensors");
    if (word == std::string("I8"))
      EXPECT_EQ(file.view("x").dtype, DType::s8);
    else
      EXPECT_THROW(file.view("x"), Error);
    EXPECT_EQ(file.bytes(*file.find("x")).size(), 6u);
  }
  const Tensor matrix(DType::i8, {2, 3});
  EXPECT_THROW(write_safetensors(folder / "t.safetensors", std::vector<NamedTensor>{{"x", matrix.view()}}), Error);
}

TEST(Safetensors, AWriterTakesAllBytesAndNoMore) {
  const TemporaryFolder folder;
  const std::vector<SafetensorsEntry> tensors = {{"x", "U8", {3}, 0, 3}, {"y", "U8", {2}, 0, 2}};
  const std::vector<std::byte> bytes(6);
  SafetensorsWriter writer(folder / "t.safetensors", tensors, {});
  writer.write(std::span(bytes).first(4));
  EXPECT_THROW(writer.commit(), Error);
  EXPECT_THROW(writer.write(std::span(bytes).first(2)), Error);
  EXPECT_FALSE(std::filesystem::exists(folder / "t.safetensors"));
}

TEST(Safetensors, ReadsTheGoldenTensors) {
  const SafetensorsFile file(kGolden / "cases/mla_tiny/golden.safetensors");
  EXPECT_FALSE(file.names().empty());
  for (const auto& name : file.names()) {
    const TensorView view = file.view(name);
    EXPECT_TRUE(view.dtype == DType::f32 || view.dtype == DType::i64) << name;
  }
}

TEST(Safetensors, MisalignedTensorsAreCopied) {
  const TemporaryFolder folder;
  // 57 or so bytes of header put the data at an odd address.
  std::string header =
      R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"y":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}})";
  while ((header.size() + 8) % 4 != 1) header += ' ';
  std::string bytes = file_of(header, 11);
  const float values[] = {1.25f, -3.0f};
  std::memcpy(bytes.data() + 8 + header.size(), values, sizeof values);
  write_text_file(folder / "odd.safetensors", bytes);
  const SafetensorsFile file(folder / "odd.safetensors");
  const TensorView view = file.view("x");
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view.data) % alignof(float), 0u);
  EXPECT_EQ(view.as<float>()[0], 1.25f);
  EXPECT_EQ(view.as<float>()[1], -3.0f);
  EXPECT_EQ(file.view("x").data, view.data) << "one copy";
  const auto message = message_of<Error>([&] { file.view("y"); });
  EXPECT_NE(message.find("\"y\""), std::string::npos) << message;
  EXPECT_NE(message.find("U8"), std::string::npos) << message;
}

TEST(Safetensors, LegalOddities) {
  EXPECT_TRUE(parse(file_of("{}")).entries.empty());
  EXPECT_TRUE(parse(file_of(R"({"__metadata__":{}}   )")).entries.empty());
  const auto scalar = parse(file_of(R"({"s":{"dtype":"I64","shape":[],"data_offsets":[0,8]}})", 8));
  EXPECT_EQ(element_count(scalar.entries[0].shape), 1);
  const auto zero = parse(file_of(R"({"z":{"dtype":"F32","shape":[9223372036854775807,0],"data_offsets":[0,0]}})"));
  EXPECT_EQ(zero.entries[0].bytes, 0);
  const auto eights = parse(file_of(R"({"a":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[1,4]},
                                        "b":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}})",
                                    4));
  EXPECT_EQ(eights.entries[0].name, "b") << "in the order of their bytes";
}

struct BadHeader {
  std::string header;
  std::size_t data_bytes;
  std::string names;  ///< that the message must hold
};

TEST(Safetensors, RefusesBrokenHeaders) {
  const auto tensor = [](const std::string& body) { return "{\"bad\":{" + body + "}}"; };
  const std::string f32 = R"("dtype":"F32",)", rest = R"("shape":[2],"data_offsets":[0,8])";
  const BadHeader cases[] = {
      {"", 0, "JSON"},
      {"[]", 0, "an array"},
      {"null", 0, "null"},
      {"{", 0, "JSON"},
      {"{}{}", 0, "JSON"},
      {"{\"a\xff\":1}", 0, "JSON"},
      {tensor(f32 + rest), 7, "bad"},   // ends beyond the file
      {tensor(f32 + rest), 9, "fill"},  // bytes that are nobody's
      {tensor(rest), 8, "dtype"},
      {tensor(R"("dtype":3,)" + rest), 8, "dtype"},
      {tensor(R"("dtype":"f32",)" + rest), 8, "f32"},
      {tensor(f32 + R"("data_offsets":[0,8])"), 8, "shape"},
      {tensor(f32 + R"("shape":2,"data_offsets":[0,8])"), 8, "shape"},
      {tensor(f32 + R"("shape":[2.0],"data_offsets":[0,8])"), 8, "shape"},
      {tensor(f32 + R"("shape":[-2],"data_offsets":[0,8])"), 8, "-2"},
      {tensor(f32 + R"("shape":["2"],"data_offsets":[0,8])"), 8, "shape"},
      {tensor(f32 + R"("shape":[18446744073709551615],"data_offsets":[0,8])"), 8, "shape"},
      {tensor(f32 + R"("shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0, "shape"},
      {tensor(f32 + R"("shape":[4611686018427387906],"data_offsets":[0,8])"), 8, "shape"},
      {tensor(f32 + R"("shape":[3],"data_offsets":[0,8])"), 8, "shape"},
      {tensor(f32 + R"("shape":[1],"data_offsets":[0,8])"), 8, "shape"},
      {tensor(f32 + R"("shape":[0],"data_offsets":[0,8])"), 8, "shape"},
      {tensor(f32 + R"("shape":[2])"), 8, "data_offsets"},
      {tensor(f32 + R"("shape":[2],"data_offsets":[8])"), 8, "data_offsets"},
      {tensor(f32 + R"("shape":[2],"data_offsets":[0,8,16])"), 8, "data_offsets"},
      {tensor(f32 + R"("shape":[2],"data_offsets":[8,0])"), 8, "data_offsets"},
      {tensor(f32 + R"("shape":[2],"data_offsets":[-8,0])"), 8, "data_offsets"},
      {tensor(f32 + R"("shape":[1],"data_offsets":[4,8])"), 8, "bad"},  // a hole before it
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "\"b\""},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
       2, "\"b\""},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
       3, "\"b\""},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "\"a\""},
      {R"({"bad":3})", 0, "bad"},
      {R"({"__metadata__":3})", 0, "__metadata__"},
      {R"({"__metadata__":{"k":3}})", 0, "__metadata__"},
      {R"({"line\nbreak":3})", 0, "line\\nbreak"},
      {"{\"" + std::string(100'000, 'n') + "\":3}", 0, "nnn"},
  };
  for (const BadHeader& bad : cases) {
    const std::string message = refusal(file_of(bad.header, bad.data_bytes));
    const std::string shown = bad.header.substr(0, 200);
    EXPECT_EQ(message.find("the_file: "), 0u) << shown << " -> " << message;
    EXPECT_NE(message.find(bad.names), std::string::npos) << shown << " -> " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 1500u) << shown;
  }
}

TEST(Safetensors, RefusesDeepNesting) {
  for (const std::string open : {"[", "{\"a\":"}) {
    std::string deep = "{\"x\":";
    for (int i = 0; i < 100'000; ++i) deep += open;
    EXPECT_NE(refusal(file_of(deep)).find("nested"), std::string::npos);
  }
}

TEST(Safetensors, RefusesImpossibleLengths) {
  const std::string good = file_of(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  ASSERT_NO_THROW(parse(good));
  for (std::size_t n = 0; n < good.size(); ++n) EXPECT_NE(refusal(good.substr(0, n)), "") << n << " bytes";
  for (const std::uint64_t length :
       {std::uint64_t{good.size() - 7}, std::uint64_t{100'000'001}, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
    std::string bad = good;
    std::memcpy(bad.data(), &length, sizeof length);
    EXPECT_NE(refusal(bad).find("header length"), std::string::npos) << length;
  }
}

TEST(Safetensors, RefusesWhatIsNoRegularFile) {
  const TemporaryFolder folder;
  for (const std::filesystem::path& path : {folder / "missing", folder.path(), std::filesystem::path("/dev/null")}) {
    const auto message = message_of<Error>([&] { SafetensorsFile file(path); });
    EXPECT_EQ(message.find(path.string() + ": "), 0u) << message;
  }
}

TEST(Safetensors, AFailedWriteLeavesTheOldFileAlone) {
  const TemporaryFolder folder;
  const auto path = folder / "t.safetensors";
  const auto x = Tensor::from<float>(std::vector<float>{1, 2}, {2});
  write_safetensors(path, std::vector<NamedTensor>{{"x", x.view()}});
  const std::string before = read_text_file(path);
  const Tensor nibbles(DType::i4, {4, 4});
  EXPECT_THROW(write_safetensors(path, std::vector<NamedTensor>{{"x", x.view()}, {"x", x.view()}}), Error);
  EXPECT_THROW(write_safetensors(path, std::vector<NamedTensor>{{"y", nibbles.view()}}), Error);
  EXPECT_THROW(write_safetensors(folder / "no/such/folder", std::vector<NamedTensor>{{"x", x.view()}}), Error);
  { AtomicFile given_up(path); }
  EXPECT_EQ(read_text_file(path), before);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1) << "temporary files are left";
}

}  // namespace
}  // namespace dsv2
