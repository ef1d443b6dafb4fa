// What nvcc's generated code calls before main: fat binaries, kernels and variables make themselves known.
#include <cstring>

#include "gpusim/runtime_state.h"

namespace gpusim::runtime {
namespace {

/// The `.nvFatBinSegment` that __cudaRegisterFatBinary is given. Of version 2 it is what nvlink wrote, and `parts` are
/// the containers of the objects that it linked, null behind the last; else `parts` is nothing that is read.
struct Wrapper {
  std::int32_t magic;
  std::int32_t version;
  const std::byte* container;
  const std::byte* const* parts;
};
constexpr std::int32_t kWrapperMagic = 0x466243B1;
constexpr std::int32_t kLinkedVersion = 2;

FatBinary read(const std::byte* container) {
  if (container == nullptr) refuse(cudaErrorInvalidKernelImage, "the program registered a broken fat binary");
  return read_fat_binary({container, fat_binary_bytes(container)});
}

/// The PTX of a container that the device runs; its origin is added to `origin`, for messages.
std::string choose_text(const FatBinary& binary, const DeviceModel& device, std::string& origin) {
  const PtxImage* image = binary.choose(device);
  if (image == nullptr)
    refuse(cudaErrorNoKernelImageForDevice, "the program holds ", binary.describe(), ", of which ", device.name,
           " runs nothing here; compile with -gencode arch=compute_80,code=compute_80");
  origin += dsv2::concat(origin.empty() ? "" : ", ", "PTX of compute_", image->capability,
                         image->source.empty() ? "" : " of ", image->source);
  return image->text();
}

/// Adds what the machine code of a container says of its kernels. Nothing runs by it: what cannot be read is left out.
void add_compiled(const FatBinary& binary, const DeviceModel& device, CompiledKernels& to) {
  const MachineCode* const code = binary.nearest_machine_code(device);
  if (code == nullptr) return;
  try {
    to.merge(read_cubin(code->image(), code->capability));
  } catch (const dsv2::Error&) {
  }
}

std::unique_ptr<Module> load_from(const std::vector<const std::byte*>& containers, const DeviceModel& device,
                                  DeviceMemory& memory) {
  try {
    std::vector<std::string> texts;
    std::string origin;
    CompiledKernels compiled;
    for (const std::byte* container : containers) {
      const FatBinary binary = read(container);
      texts.push_back(choose_text(binary, device, origin));
      add_compiled(binary, device, compiled);
    }
    try {
      return Module::link(texts, memory, std::move(compiled));
    } catch (const dsv2::Error& error) {
      refuse(cudaErrorInvalidPtx, origin, ": ", error.what());
    }
  } catch (const dsv2::Error& error) {
    refuse(cudaErrorInvalidKernelImage, error.what());
  }
}

}  // namespace

Image& State::add_image(std::vector<const std::byte*> containers) {
  images_.push_back(std::make_unique<Image>());
  images_.back()->containers = std::move(containers);
  return *images_.back();
}

void State::add_kernel(const void* host, Image& image, std::string name) {
  auto kernel = std::make_unique<CUkern_st>();
  kernel->image = &image;
  kernel->name = std::move(name);
  kernels_[host] = std::move(kernel);
}

void State::add_variable(const void* host, HostVariable variable) { variables_[host] = std::move(variable); }

Module& State::load(Image& image) {
  if (image.broken) throw Refusal(*image.broken);
  if (image.module != nullptr) return *image.module;
  try {
    image.module = load_from(image.containers, device, memory);
  } catch (const Refusal& refusal) {
    image.broken = refusal;
    throw;
  }
  for (const auto& [host, variable] : variables_) {
    if (variable.image != &image || variable.managed == nullptr) continue;
    const ModuleVariable* placed = image.module->variable(variable.name);
    if (placed == nullptr) continue;
    *variable.managed = reinterpret_cast<void*>(placed->address);
    host_visible[placed->address] = Place::managed;
  }
  return *image.module;
}

void State::unload_all() {
  for (const auto& image : images_) {
    image->module.reset();
    image->broken.reset();
  }
}

CUkern_st& State::kernel(const void* function) {
  if (const auto found = kernels_.find(function); found != kernels_.end()) return *found->second;
  for (const auto& [host, kernel] : kernels_)
    if (kernel.get() == function) return *kernel;
  refuse(cudaErrorInvalidDeviceFunction, "0x", std::hex, reinterpret_cast<std::uint64_t>(function),
         " is no __global__ function of this program");
}

const KernelInfo& State::info(CUkern_st& kernel) {
  Module& module = load(*kernel.image);
  const KernelInfo* found = nullptr;
  try {
    found = module.kernel(kernel.name);
  } catch (const dsv2::Error& error) {
    throw Refusal{cudaErrorInvalidPtx, demangled(kernel.name) + ": " + error.what(), FindingKind::unsupported};
  }
  if (found == nullptr)
    refuse(cudaErrorInvalidDeviceFunction, "the PTX that ", device.name, " runs holds no kernel ",
           demangled(kernel.name));
  return *found;
}

const HostVariable& State::variable(const void* symbol) {
  if (const auto found = variables_.find(symbol); found != variables_.end()) return found->second;
  for (const auto& [host, variable] : variables_)
    if (variable.managed != nullptr && *variable.managed == symbol && symbol != nullptr) return variable;
  refuse(cudaErrorInvalidSymbol, "0x", std::hex, reinterpret_cast<std::uint64_t>(symbol),
         " is no __device__, __constant__ or __managed__ variable; pass the variable itself, not its name or address");
}

ModuleVariable State::module_variable(const void* symbol) {
  const HostVariable& known = variable(symbol);
  const ModuleVariable* placed = load(*known.image).variable(known.name);
  if (placed == nullptr)
    refuse(cudaErrorInvalidSymbol, "the PTX that ", device.name, " runs holds no variable ", known.name);
  return *placed;
}

}  // namespace gpusim::runtime

using namespace gpusim::runtime;

// The names are those that nvcc's code calls.
// NOLINTBEGIN(bugprone-reserved-identifier)
extern "C" {

void** __cudaRegisterFatBinary(void* segment) {
  Wrapper wrapper;
  std::memcpy(&wrapper, segment, sizeof wrapper);
  State& state = State::get();
  const std::lock_guard lock(state.mutex);
  std::vector<const std::byte*> containers;
  if (wrapper.magic == kWrapperMagic && wrapper.version == kLinkedVersion) {
    for (const std::byte* const* part = wrapper.parts; *part != nullptr; ++part) containers.push_back(*part);
  } else {  // a broken wrapper is told when something of it is used
    containers.push_back(wrapper.magic == kWrapperMagic ? wrapper.container : nullptr);
  }
  return reinterpret_cast<void**>(&state.add_image(std::move(containers)));
}

void __cudaRegisterFatBinaryEnd(void**) {}

// Registered with atexit by the program. What was loaded stays, for exit handlers that still use it.
void __cudaUnregisterFatBinary(void**) {}

char __cudaInitModule(void** handle) {
  return call("module initialisation", [&](State& state) { state.load(*reinterpret_cast<Image*>(handle)); }) ==
         cudaSuccess;
}

void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  State& state = State::get();
  const std::lock_guard lock(state.mutex);
  state.add_kernel(host, *reinterpret_cast<Image*>(handle), name);
}

void __cudaRegisterVar(void** handle, char* host, char*, const char* name, int, std::size_t bytes, int, int) {
  State& state = State::get();
  const std::lock_guard lock(state.mutex);
  state.add_variable(host, {reinterpret_cast<Image*>(handle), name, bytes, nullptr});
}

void __cudaRegisterManagedVar(void** handle, void** host, char*, const char* name, int, std::size_t bytes, int, int) {
  State& state = State::get();
  const std::lock_guard lock(state.mutex);
  state.add_variable(host, {reinterpret_cast<Image*>(handle), name, bytes, host});
}

cudaError_t __cudaGetKernel(cudaKernel_t* handle, const void* function) {
  return call(
      "__cudaGetKernel", [&](State& state) { *handle = &state.kernel(function); }, Needs::nothing);
}

cudaError_t cudaGetKernel(cudaKernel_t* handle, const void* function) { return __cudaGetKernel(handle, function); }

}  // extern "C"
// NOLINTEND(bugprone-reserved-identifier)
