#include "gpusim/ptx.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <deque>
#include <optional>
#include <tuple>
#include <utility>

#include "gpusim/ptx_lexer.h"
#include "model/error.h"

namespace gpusim::ptx {
namespace {

constexpr std::pair<std::string_view, int> kTypes[] = {
    {"b8", 1},    {"u8", 1},     {"s8", 1},      {"b16", 2},        {"u16", 2},  {"s16", 2},     {"f16", 2},
    {"bf16", 2},  {"b32", 4},    {"u32", 4},     {"s32", 4},        {"f32", 4},  {"f16x2", 4},   {"bf16x2", 4},
    {"tf32", 4},  {"b64", 8},    {"u64", 8},     {"s64", 8},        {"f64", 8},  {"f32x2", 8},   {"b128", 16},
    {"pred", 0},  {"e4m3x2", 2}, {"e5m2x2", 2},  {"e4m3", 1},       {"e5m2", 1}, {"ue8m0x2", 2}, {"s16x2", 4},
    {"u16x2", 4}, {"texref", 8}, {"surfref", 8}, {"samplerref", 8},
};

constexpr std::pair<std::string_view, Space> kSpaces[] = {
    {".global", Space::global}, {".const", Space::constant}, {".shared", Space::shared},
    {".local", Space::local},   {".param", Space::param},
};

std::optional<Space> space_of(std::string_view directive) {
  for (const auto& [name, space] : kSpaces) {
    if (directive == name) return space;
  }
  return std::nullopt;
}

/// Special registers; %clock and its kind are read as they are executed, the others are known when a block starts.
bool is_special(std::string_view name) {
  constexpr std::string_view kPrefixes[] = {
      "%tid",
      "%ntid",
      "%ctaid",
      "%nctaid",
      "%laneid",
      "%warpid",
      "%nwarpid",
      "%smid",
      "%nsmid",
      "%gridid",
      "%lanemask_",
      "%clock",
      "%globaltimer",
      "%dynamic_smem_size",
      "%total_smem_size",
      "%aggr_smem_size",
      "%clusterid",
      "%nclusterid",
      "%cluster_ctaid",
      "%cluster_nctaid",
      "%cluster_ctarank",
      "%cluster_nctarank",
      "%is_explicit_cluster",
      "%reserved_smem_offset",
      "%current_graph_exec",
      "%pm",
      "%envreg",
  };
  return std::any_of(std::begin(kPrefixes), std::end(kPrefixes),
                     [name](std::string_view prefix) { return name.starts_with(prefix); });
}

/// Whether `text` names parts of a register: "b2", "h10", ...
bool is_selector(std::string_view text) {
  if (text.size() < 2 || text.size() > 5 || (text[0] != 'b' && text[0] != 'h')) return false;
  return std::all_of(text.begin() + 1, text.end(), [](char c) { return c >= '0' && c <= '7'; });
}

/// A position of the line table, and where the code of a position was inlined.
using Position = std::tuple<int, int, int>;

/// Whether a file belongs to the CUDA toolkit, so that the reader would rather see who called it.
bool is_toolkit_file(std::string_view file) {
  constexpr std::string_view kDirectories[] = {"/cuda/", "/cuda-", "/nvidia/",
                                               "/cccl/", "/crt/",  "/targets/x86_64-linux/"};
  if (file.find("include/") == std::string_view::npos) return false;
  return std::any_of(std::begin(kDirectories), std::end(kDirectories),
                     [file](std::string_view directory) { return file.find(directory) != std::string_view::npos; });
}

class Parser {
 public:
  Parser(Module& module, std::vector<Token> tokens) : module_(module), tokens_(std::move(tokens)) {}

  void run() {
    if (!is(".version")) refuse("expected .version: is it PTX at all?");
    while (peek().kind != Token::Kind::end) statement();
    place_all();
  }

 private:
  // ---- tokens
  const Token& peek(std::size_t ahead = 0) const { return tokens_[std::min(next_ + ahead, tokens_.size() - 1)]; }
  bool is(std::string_view text) const { return peek().text == text && peek().kind != Token::Kind::string; }
  bool eat(std::string_view text) {
    if (!is(text)) return false;
    ++next_;
    return true;
  }
  void expect(std::string_view text) {
    if (!eat(text)) refuse(dsv2::concat("expected '", text, "'"));
  }
  [[noreturn]] void refuse(std::string_view what) const { refuse_at(peek(), what); }
  [[noreturn]] void refuse_at(const Token& token, std::string_view what) const {
    dsv2::fail("PTX line ", token.line, ": ", what, " at '", token.text, "': ", line_text(token.line));
  }
  std::string_view line_text(int line) const {
    const std::string_view text = module_.text;
    std::size_t begin = 0;
    for (int i = 1; i < line && begin != std::string_view::npos; ++i) {
      const std::size_t newline = text.find('\n', begin);
      begin = newline == std::string_view::npos ? newline : newline + 1;
    }
    if (begin == std::string_view::npos) return {};
    std::string_view result = text.substr(begin, text.find('\n', begin) - begin);
    while (!result.empty() && (result.front() == ' ' || result.front() == '\t')) result.remove_prefix(1);
    return result;
  }
  std::string_view word() {
    if (peek().kind != Token::Kind::word) refuse("expected a name");
    return tokens_[next_++].text;
  }

  // ---- numbers
  /// Digits of `text` from `skip` on in `base`; a trailing U is allowed.
  std::uint64_t digits(std::string_view text, std::size_t skip, int base) const {
    std::string_view body = text.substr(skip);
    if (!body.empty() && (body.back() == 'U' || body.back() == 'u')) body.remove_suffix(1);
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(body.data(), body.data() + body.size(), value, base);
    if (error != std::errc() || end != body.data() + body.size() || body.empty()) refuse("bad number");
    return value;
  }
  std::uint64_t unsigned_number(std::string_view text) const {
    if (text.starts_with("0x") || text.starts_with("0X")) return digits(text, 2, 16);
    if (text.starts_with("0b") || text.starts_with("0B")) return digits(text, 2, 2);
    if (text.size() > 1 && text[0] == '0' && text[1] != 'U' && text[1] != 'u') return digits(text, 1, 8);
    return digits(text, 0, 10);
  }
  std::int64_t number() {
    const bool negative = eat("-");
    if (peek().kind != Token::Kind::number) refuse("expected a number");
    const std::uint64_t value = unsigned_number(peek().text);
    ++next_;
    return static_cast<std::int64_t>(negative ? ~value + 1 : value);
  }
  Operand literal(bool negative) {
    const std::string_view text = peek().text;
    Operand result;
    const bool hex_float = text.size() > 2 && text[0] == '0';
    if (hex_float && (text[1] == 'f' || text[1] == 'F')) {
      result = {.kind = Operand::Kind::f32, .bits = digits(text, 2, 16) ^ (negative ? 0x80000000u : 0u)};
    } else if (hex_float && (text[1] == 'd' || text[1] == 'D')) {
      result = {.kind = Operand::Kind::f64, .bits = digits(text, 2, 16) ^ (std::uint64_t{negative} << 63)};
    } else if (text.find('.') != std::string_view::npos) {
      double value = 0;
      std::from_chars(text.data(), text.data() + text.size(), value);
      result = {.kind = Operand::Kind::f64, .bits = std::bit_cast<std::uint64_t>(negative ? -value : value)};
    } else {
      const std::uint64_t value = unsigned_number(text);
      result = {.kind = Operand::Kind::integer, .bits = negative ? ~value + 1 : value};
    }
    ++next_;
    return result;
  }

  // ---- module level
  void statement() {
    if (eat(".version")) {
      module_.version = peek().text;
      ++next_;
      check_version();
    } else if (eat(".target")) {
      module_.target = word();
      while (eat(",")) word();
    } else if (eat(".address_size")) {
      const Token size = peek();
      if (number() != 64) refuse_at(size, "only 64-bit addresses are modelled");
    } else if (eat(".file")) {
      file();
    } else if (is(".section")) {
      skip_section();
    } else if (is(".alias")) {
      refuse(".alias is not modelled");
    } else {
      declaration();
    }
  }

  void check_version() const {
    int major = 0;
    std::from_chars(module_.version.data(), module_.version.data() + module_.version.size(), major);
    if (major < 6 || major > 9)
      refuse(dsv2::concat("PTX version ", module_.version, " is not modelled, 6.0 to 9.x are"));
  }

  void file() {
    const int index = static_cast<int>(number());
    if (peek().kind != Token::Kind::string) refuse("expected a file name");
    module_.files[index] = std::string(peek().text);
    ++next_;
    while (eat(",")) number();
  }

  void skip_section() {
    while (!is("{") && peek().kind != Token::Kind::end) ++next_;
    expect("{");
    for (int depth = 1; depth > 0; ++next_) {
      if (peek().kind == Token::Kind::end) refuse("a section without an end");
      if (is("{")) ++depth;
      if (is("}")) --depth;
    }
  }

  void declaration() {
    bool external = false;
    bool internal = true;
    for (;;) {
      if (eat(".extern")) {
        external = true;
      } else if (!eat(".visible") && !eat(".weak") && !eat(".common")) {
        break;
      }
      internal = false;
    }
    if (eat(".entry")) return function(true, internal);
    if (eat(".func")) return function(false, internal);
    const auto space = space_of(peek().text);
    if (!space) refuse("not understood");
    ++next_;
    do {
      Variable variable = declare_variable(*space);
      variable.external = external;
      variable.internal = internal;
      const std::string name = variable.name;
      module_.variables.insert_or_assign(name, std::move(variable));
    } while (eat(","));
    expect(";");
  }

  /// After the space: [.align n] [.v4] .type name[extents] [= initialiser].
  Variable declare_variable(Space space) {
    Variable result{.space = space};
    int element = 0;
    int lanes = 1;
    bool aligned = false;
    while (peek().kind == Token::Kind::word && peek().text.starts_with('.')) {
      const std::string_view directive = word();
      if (directive == ".align") {
        result.alignment = static_cast<std::size_t>(number());
        aligned = true;
      } else if (directive == ".v2" || directive == ".v4") {
        lanes = directive == ".v2" ? 2 : 4;
      } else if (directive == ".attribute") {
        result.managed = skip_parentheses().find(".managed") != std::string::npos;
      } else if (directive == ".ptr" || space_of(directive)) {
        // .ptr .global .align 16: what a pointer parameter points to; nothing to lay out
        if (directive == ".ptr" && space_of(peek().text)) ++next_;
        if (is(".align")) {
          ++next_;
          number();
        }
      } else if (const int bytes = type_bytes(directive.substr(1)); bytes > 0) {
        element = bytes;
      } else {
        --next_;
        refuse("unknown type");
      }
    }
    result.name = word();
    if (!aligned) result.alignment = static_cast<std::size_t>(std::max(1, element * lanes));
    std::size_t count = 1;
    while (eat("[")) {
      if (eat("]")) {
        count = 0;
        result.unsized = true;
      } else {
        count *= static_cast<std::size_t>(number());
        expect("]");
      }
    }
    result.bytes = count * static_cast<std::size_t>(element * lanes);
    if (eat("=")) initialiser(result, element);
    return result;
  }

  std::string skip_parentheses() {
    std::string content;
    expect("(");
    for (int depth = 1; depth > 0; ++next_) {
      if (peek().kind == Token::Kind::end) refuse("a parenthesis without an end");
      if (is("(")) ++depth;
      if (is(")")) --depth;
      content += peek().text;
    }
    return content;
  }

  void initialiser(Variable& variable, int element) {
    variable.initial.assign(variable.bytes, std::byte{0});
    std::size_t at = 0;
    int depth = 0;
    do {
      if (eat("{")) {
        ++depth;
      } else if (eat("}")) {
        --depth;
      } else if (!eat(",")) {
        const std::size_t end = at + static_cast<std::size_t>(element);
        if (end > variable.initial.size()) {
          if (!variable.unsized) refuse("more initialisers than the variable holds");
          variable.initial.resize(end);
          variable.bytes = end;
        }
        initial_value(variable, at, element);
        at = end;
      }
    } while (depth > 0);
    variable.unsized = false;
  }

  void initial_value(Variable& variable, std::size_t at, int element) {
    if (peek().kind == Token::Kind::word) {
      variable.relocations.push_back(address_of(at, element));
      return;
    }
    const bool negative = eat("-");
    if (peek().kind != Token::Kind::number) refuse("expected an initialiser");
    const Operand value = literal(negative);
    if (eat("(")) {  // 0xFF00(symbol): one byte of an address
      Relocation relocation = address_of(at, element);
      relocation.shift = std::countr_zero(value.bits);
      expect(")");
      variable.relocations.push_back(std::move(relocation));
      return;
    }
    std::memcpy(&variable.initial[at], &value.bits, static_cast<std::size_t>(element));
  }

  Relocation address_of(std::size_t at, int element) {
    Relocation result{.at = at, .bytes = element};
    std::string_view name = word();
    const bool generic = name == "generic" && eat("(");
    if (generic) name = word();
    result.symbol = name;
    if (eat("+")) result.offset = number();
    if (generic) expect(")");
    if (eat("+")) result.offset += number();
    return result;
  }

  // ---- functions
  void function(bool entry, bool internal) {
    auto made = std::make_unique<Function>();
    function_ = made.get();
    function_->entry = entry;
    function_->internal = internal;
    scopes_.assign(1, {});
    scope_parents_.assign(1, -1);
    open_scopes_.assign(1, 0);
    labels_.clear();
    place_ = -1;
    if (!entry && is("(")) function_->results = parameters();
    function_->name = word();
    if (is("(")) function_->parameters = parameters();
    function_directives();
    if (!eat(";")) {
      expect("{");
      function_->defined = true;
      body();
      resolve_labels();
    }
    keep(std::move(made));
    function_ = nullptr;
  }

  /// A definition takes the place of its declaration.
  void keep(std::unique_ptr<Function> made) {
    const auto [entry, fresh] =
        module_.function_index.try_emplace(made->name, static_cast<int>(module_.functions.size()));
    if (fresh) {
      module_.functions.push_back(std::move(made));
    } else if (made->defined) {
      module_.functions[static_cast<std::size_t>(entry->second)] = std::move(made);
    }
  }

  std::vector<int> parameters() {
    std::vector<int> result;
    expect("(");
    while (!eat(")")) {
      if (!eat(".param") && !eat(".reg")) refuse("expected a parameter");
      result.push_back(add_variable(declare_variable(Space::param)));
      if (!is(")")) expect(",");
    }
    return result;
  }

  void function_directives() {
    while (peek().kind == Token::Kind::word && peek().text.starts_with('.')) {
      const std::string_view directive = word();
      std::array<unsigned, 3> values = {1, 1, 1};
      for (std::size_t i = 0; peek().kind == Token::Kind::number && i < 3; ++i) {
        values[i] = static_cast<unsigned>(number());
        if (!eat(",")) break;
      }
      if (directive == ".maxntid" || directive == ".reqntid") {
        function_->max_threads = static_cast<int>(values[0] * values[1] * values[2]);
      } else if (directive == ".reqnctapercluster") {
        function_->cluster = values;
      } else if (directive == ".pragma") {
        ++next_;
        expect(";");
      } else if (directive == ".attribute") {
        skip_parentheses();
      }
    }
  }

  int add_variable(Variable variable) {
    const int index = static_cast<int>(function_->variables.size());
    names().insert_or_assign(variable.name, Name{.variable = index});
    function_->variables.push_back(std::move(variable));
    return index;
  }

  void body() {
    for (;;) {
      if (peek().kind == Token::Kind::end) refuse("a function without an end");
      if (eat("{")) {
        open_scopes_.push_back(static_cast<int>(scopes_.size()));
        scope_parents_.push_back(open_scopes_[open_scopes_.size() - 2]);
        scopes_.emplace_back();
      } else if (eat("}")) {
        open_scopes_.pop_back();
        if (open_scopes_.empty()) return;
      } else if (!eat(";")) {
        body_statement();
      }
    }
  }

  void body_statement() {
    const Token& first = peek();
    if (first.kind == Token::Kind::word && peek(1).text == ":" && peek(1).kind == Token::Kind::punctuation) {
      next_ += 2;
      label(first.text);
    } else if (eat(".loc")) {
      location();
    } else if (eat(".reg")) {
      registers();
    } else if (eat(".pragma")) {
      while (!eat(";")) ++next_;
    } else if (is(".section")) {
      skip_section();
    } else if (eat(".file")) {
      file();
    } else if (const auto space = space_of(first.text)) {
      ++next_;
      do {
        add_variable(declare_variable(*space));
      } while (eat(","));
      expect(";");
    } else {
      instruction();
    }
  }

  void label(std::string_view name) {
    if (eat(".branchtargets")) {
      auto& list = branch_lists_.emplace_back(std::string(name), std::vector<std::string>{}, open_scopes_.back());
      do {
        std::get<1>(list).emplace_back(word());
      } while (eat(","));
      expect(";");
    } else if (eat(".calltargets")) {
      auto& list = function_->call_targets[std::string(name)];
      do {
        list.emplace_back(word());
      } while (eat(","));
      expect(";");
    } else if (eat(".callprototype")) {
      prototype(name);
    } else {
      labels_[{open_scopes_.back(), std::string(name)}] = static_cast<int>(function_->code.size());
    }
  }

  void prototype(std::string_view name) {
    if (is("(")) skip_parentheses();
    word();
    int count = 0;
    if (is("(")) {
      const std::string list = skip_parentheses();
      for (std::size_t at = list.find(".param"); at != std::string::npos; at = list.find(".param", at + 1)) ++count;
    }
    while (!eat(";")) ++next_;
    function_->prototypes[std::string(name)] = count;
  }

  void location() {
    const int file = static_cast<int>(number());
    const int line = static_cast<int>(number());
    const int column = static_cast<int>(number());
    const Position here{file, line, column};
    std::optional<Position> inlined_at;
    while (eat(",")) {
      const std::string_view what = word();
      if (what == "function_name") {
        word();
        if (eat("+")) number();
      } else if (what == "inlined_at") {
        const int outer_file = static_cast<int>(number());
        const int outer_line = static_cast<int>(number());
        inlined_at = Position{outer_file, outer_line, static_cast<int>(number())};
      } else {
        refuse("unknown attribute of .loc");
      }
    }
    place_ = static_cast<int>(positions_.size());
    positions_.emplace_back(here, inlined_at, function_);
  }

  /// Every place by its program's own line: code of the toolkit's headers stands where it was inlined. The files'
  /// names come last in the text, so this is done at the end.
  void place_all() {
    std::map<std::pair<const Function*, Position>, Position> callers;
    for (const auto& [here, inlined_at, function] : positions_) {
      Position position = here;
      if (inlined_at) callers.insert_or_assign({function, here}, *inlined_at);
      for (int depth = 0; depth < 64; ++depth) {
        const auto name = module_.files.find(std::get<0>(position));
        if (name == module_.files.end() || !is_toolkit_file(name->second)) break;
        const auto caller = callers.find({function, position});
        if (caller == callers.end()) break;
        position = caller->second;
      }
      module_.places.push_back({.file = std::get<0>(position), .line = std::get<1>(position)});
    }
  }

  void registers() {
    const std::string_view type = word();
    const int bytes = type_bytes(type.substr(1));
    if (!type.starts_with('.') || bytes < 0) refuse("unknown register type");
    const int kept = bytes == 0 ? 0 : std::max(4, bytes);
    do {
      const std::string_view name = word();
      if (eat("<")) {
        const std::int64_t count = number();
        expect(">");
        for (std::int64_t i = 0; i < count; ++i) add_register(dsv2::concat(name, i), kept);
      } else {
        add_register(std::string(name), kept);
      }
    } while (eat(","));
    expect(";");
  }

  void add_register(const std::string& name, int bytes) {
    names().insert_or_assign(name, Name{.reg = static_cast<int>(function_->registers.size())});
    function_->registers.push_back({.name = {}, .bytes = bytes});
  }

  // ---- instructions
  void instruction() {
    Instruction result;
    const Token first = peek();
    result.line = first.line;
    result.place = place_;
    if (eat("@")) {
      result.guard_negated = eat("!");
      const Operand guard = operand();
      if (guard.kind != Operand::Kind::reg) refuse_at(first, "a guard that is no predicate");
      result.guard = guard.reg;
    }
    if (peek().kind != Token::Kind::word) refuse("expected an instruction");
    split(word(), result.opcode);
    if (!is(";")) {
      do {
        result.operands.push_back(operand());
      } while (eat(","));
    }
    const Token last = peek();
    expect(";");
    result.text = {first.text.data(), static_cast<std::size_t>(last.text.data() - first.text.data())};
    scopes_of_code_.push_back(open_scopes_.back());
    function_->code.push_back(std::move(result));
  }

  static void split(std::string_view opcode, std::vector<std::string_view>& parts) {
    while (!opcode.empty()) {
      const std::size_t dot = opcode.find('.');
      parts.push_back(opcode.substr(0, dot));
      opcode.remove_prefix(dot == std::string_view::npos ? opcode.size() : dot + 1);
    }
  }

  Operand operand() {
    if (eat("{")) return sequence(Operand::Kind::vector, "}");
    if (eat("(")) return sequence(Operand::Kind::list, ")");
    if (eat("[")) return address();
    if (eat("!")) {
      Operand result = operand();
      result.negated = true;
      return result;
    }
    bool negative = false;
    while (is("-") || is("+")) negative ^= tokens_[next_++].text == "-";
    if (peek().kind == Token::Kind::number) return literal(negative);
    Operand result = named(word());
    result.negated = negative;
    if (eat("|")) {
      const Operand second = named(word());
      result.second = second.reg;
    }
    if (result.kind == Operand::Kind::symbol && (is("+") || is("-"))) {
      eat("+");
      result.offset = number();
    }
    return result;
  }

  Operand sequence(Operand::Kind kind, std::string_view end) {
    Operand result{.kind = kind};
    while (!eat(end)) {
      result.elements.push_back(operand());
      if (!is(end)) expect(",");
    }
    return result;
  }

  Operand address() {
    Operand result{.kind = Operand::Kind::address};
    result.elements.push_back(operand());
    for (;;) {
      if (eat("+") || is("-")) {
        result.offset += number();
      } else if (eat(",")) {
        result.elements.push_back(operand());
      } else {
        break;
      }
    }
    expect("]");
    result.offset += result.elements[0].offset;
    result.elements[0].offset = 0;
    return result;
  }

  Operand named(std::string_view name) {
    if (name == "_") return {.kind = Operand::Kind::wildcard};
    const std::string key(name);
    for (std::size_t i = open_scopes_.size(); i-- > 0;) {
      const auto& scope = scopes_[static_cast<std::size_t>(open_scopes_[i])];
      const auto found = scope.find(key);
      if (found == scope.end()) continue;
      if (found->second.reg >= 0) return {.kind = Operand::Kind::reg, .reg = found->second.reg};
      return {.kind = Operand::Kind::symbol, .name = key, .variable = found->second.variable};
    }
    if (name == "WARP_SZ") return {.kind = Operand::Kind::integer, .bits = 32};
    if (is_special(name)) return {.kind = Operand::Kind::special, .name = key};
    if (const std::size_t dot = name.rfind('.'); dot != std::string_view::npos && is_selector(name.substr(dot + 1))) {
      Operand part = named(name.substr(0, dot));
      part.selector = name.substr(dot + 1);
      return part;
    }
    if (name.starts_with('%')) refuse("undeclared register");
    return {.kind = Operand::Kind::symbol, .name = key};
  }

  // ---- labels, once all of them are known
  int find_label(int scope, const std::string& name) const {
    for (; scope >= 0; scope = scope_parents_[static_cast<std::size_t>(scope)]) {
      const auto found = labels_.find({scope, name});
      if (found != labels_.end()) return found->second;
    }
    return -1;
  }

  void resolve_labels() {
    for (std::size_t i = 0; i < function_->code.size(); ++i) {
      Instruction& instruction = function_->code[i];
      if (instruction.opcode[0] != "bra" || instruction.operands.empty()) continue;
      Operand& target = instruction.operands[0];
      target.target = find_label(scopes_of_code_[i], target.name);
      if (target.target < 0)
        dsv2::fail("PTX line ", instruction.line, ": no label '", target.name, "': ", instruction.text);
      target.kind = Operand::Kind::label;
    }
    for (const auto& [name, list, scope] : branch_lists_) {
      for (const std::string& entry : list) {
        const int target = find_label(scope, entry);
        DSV2_CHECK(target >= 0, "PTX: .branchtargets ", name, " of ", function_->name, " names no label '", entry, "'");
        function_->branch_targets[name].push_back(target);
      }
    }
    branch_lists_.clear();
    scopes_of_code_.clear();
  }

  struct Name {
    int reg = -1;
    int variable = -1;
  };
  using Names = std::unordered_map<std::string, Name>;
  Names& names() { return scopes_[static_cast<std::size_t>(open_scopes_.back())]; }

  Module& module_;
  std::vector<Token> tokens_;
  std::size_t next_ = 0;

  Function* function_ = nullptr;
  std::deque<Names> scopes_;  ///< of the function, as its braces open
  std::vector<int> scope_parents_;
  std::vector<int> open_scopes_;
  std::map<std::pair<int, std::string>, int> labels_;
  std::vector<std::tuple<std::string, std::vector<std::string>, int>> branch_lists_;
  std::vector<int> scopes_of_code_;
  int place_ = -1;
  std::vector<std::tuple<Position, std::optional<Position>, const Function*>> positions_;
};

}  // namespace

int type_bytes(std::string_view name) {
  for (const auto& [type, bytes] : kTypes) {
    if (type == name) return bytes;
  }
  return -1;
}

bool Instruction::has(std::string_view modifier) const {
  return std::find(opcode.begin() + 1, opcode.end(), modifier) != opcode.end();
}

const Function* Module::function(std::string_view name) const {
  const auto found = function_index.find(std::string(name));
  return found == function_index.end() ? nullptr : functions[static_cast<std::size_t>(found->second)].get();
}

std::unique_ptr<Module> parse(std::string_view text) {
  auto module = std::make_unique<Module>();
  module->text = std::string(text.substr(0, text.find('\0')));
  Parser(*module, tokenize(module->text)).run();
  return module;
}

}  // namespace gpusim::ptx
