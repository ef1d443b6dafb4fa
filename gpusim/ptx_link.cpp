// Modules that were compiled apart (-rdc=true) become one: what one declares and another defines is joined by name.
#include <algorithm>
#include <utility>

#include "gpusim/ptx.h"
#include "model/error.h"

namespace gpusim::ptx {
namespace {

using Names = std::unordered_map<std::string, std::string>;

void rename(std::string& name, const Names& names) {
  if (const auto found = names.find(name); found != names.end()) name = found->second;
}

void rename(Operand& operand, const Names& names) {
  if (operand.kind == Operand::Kind::symbol && operand.variable < 0) rename(operand.name, names);
  for (Operand& element : operand.elements) rename(element, names);
}

void rename(Variable& variable, const Names& names) {
  for (Relocation& relocation : variable.relocations) rename(relocation.symbol, names);
}

class Linker {
 public:
  explicit Linker(Module& into) : into_(into) {}

  void add(std::unique_ptr<Module> module) {
    const int files = into_.files.empty() ? 0 : into_.files.rbegin()->first + 1;
    const int places = static_cast<int>(into_.places.size());
    for (auto& [number, name] : module->files) into_.files[number + files] = std::move(name);
    for (const Place& place : module->places) into_.places.push_back({.file = place.file + files, .line = place.line});

    const Names names = private_names(*module);
    for (auto& [name, variable] : module->variables) {
      rename(variable, names);
      add_variable(std::move(variable), names);
    }
    for (auto& function : module->functions) {
      for (Instruction& instruction : function->code) {
        if (instruction.place >= 0) instruction.place += places;
        for (Operand& operand : instruction.operands) rename(operand, names);
      }
      for (Variable& variable : function->variables) rename(variable, names);
      for (auto& [list, targets] : function->call_targets) {
        for (std::string& target : targets) rename(target, names);
      }
      rename(function->name, names);
      add_function(std::move(function));
    }
    into_.more_texts.push_back(std::move(module->text));
  }

 private:
  /// New names for what is the module's own, and of which there is another by that name.
  Names private_names(const Module& module) {
    ++count_;
    Names names;
    const auto consider = [&](const std::string& name, bool is_private) {
      const bool taken = into_.variables.contains(name) || into_.function_index.contains(name);
      if (is_private && taken) names[name] = dsv2::concat(name, "@", count_);
    };
    for (const auto& [name, variable] : module.variables) consider(name, variable.internal);
    for (const auto& function : module.functions) consider(function->name, function->internal);
    return names;
  }

  void add_variable(Variable variable, const Names& names) {
    rename(variable.name, names);
    const auto [entry, fresh] = into_.variables.try_emplace(variable.name);
    Variable& known = entry->second;
    if (fresh || (known.external && !variable.external)) known = std::move(variable);
  }

  /// A definition takes the place of a declaration; of several (inline functions, templates) the first stays.
  void add_function(std::unique_ptr<Function> function) {
    const auto [entry, fresh] =
        into_.function_index.try_emplace(function->name, static_cast<int>(into_.functions.size()));
    if (fresh) {
      into_.functions.push_back(std::move(function));
      return;
    }
    auto& known = into_.functions[static_cast<std::size_t>(entry->second)];
    if (function->defined && !known->defined) known = std::move(function);
  }

  Module& into_;
  int count_ = 0;
};

}  // namespace

std::unique_ptr<Module> link(std::vector<std::unique_ptr<Module>> modules) {
  DSV2_CHECK(!modules.empty(), "PTX: no modules to link");
  std::unique_ptr<Module> result = std::move(modules[0]);
  Linker linker(*result);
  for (std::size_t i = 1; i < modules.size(); ++i) linker.add(std::move(modules[i]));
  return result;
}

}  // namespace gpusim::ptx
