// Errors of the CUDA runtime: their names and texts, and the last one.
#include <algorithm>
#include <array>

#include "gpusim/runtime_state.h"

namespace gpusim::runtime {
namespace {

struct ErrorText {
  cudaError_t code;
  const char* name;
  const char* text;
};

#define GPUSIM_ERROR(code, text) \
  ErrorText { code, #code, text }

// The texts are those that cudaGetErrorString of the real runtime gives. In the order of the codes.
constexpr std::array kErrors = {
    GPUSIM_ERROR(cudaSuccess, "no error"),
    GPUSIM_ERROR(cudaErrorInvalidValue, "invalid argument"),
    GPUSIM_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    GPUSIM_ERROR(cudaErrorInitializationError, "initialization error"),
    GPUSIM_ERROR(cudaErrorCudartUnloading, "driver shutting down"),
    GPUSIM_ERROR(cudaErrorProfilerDisabled, "profiler disabled while using external profiling tool"),
    GPUSIM_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    GPUSIM_ERROR(cudaErrorInvalidPitchValue, "invalid pitch argument"),
    GPUSIM_ERROR(cudaErrorInvalidSymbol, "invalid device symbol"),
    GPUSIM_ERROR(cudaErrorInvalidHostPointer, "invalid host pointer"),
    GPUSIM_ERROR(cudaErrorInvalidDevicePointer, "invalid device pointer"),
    GPUSIM_ERROR(cudaErrorInvalidTexture, "invalid texture reference"),
    GPUSIM_ERROR(cudaErrorInvalidChannelDescriptor, "invalid channel descriptor"),
    GPUSIM_ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    GPUSIM_ERROR(cudaErrorStubLibrary, "CUDA driver is a stub library"),
    GPUSIM_ERROR(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    GPUSIM_ERROR(cudaErrorDevicesUnavailable, "CUDA-capable device(s) is/are busy or unavailable"),
    GPUSIM_ERROR(cudaErrorMissingConfiguration, "__global__ function call is not configured"),
    GPUSIM_ERROR(cudaErrorInvalidDeviceFunction, "invalid device function"),
    GPUSIM_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    GPUSIM_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    GPUSIM_ERROR(cudaErrorInvalidKernelImage, "device kernel image is invalid"),
    GPUSIM_ERROR(cudaErrorDeviceUninitialized, "invalid device context"),
    GPUSIM_ERROR(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device"),
    GPUSIM_ERROR(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered"),
    GPUSIM_ERROR(cudaErrorUnsupportedLimit, "limit is not supported on this architecture"),
    GPUSIM_ERROR(cudaErrorPeerAccessUnsupported, "peer access is not supported between these two devices"),
    GPUSIM_ERROR(cudaErrorInvalidPtx, "a PTX JIT compilation failed"),
    GPUSIM_ERROR(cudaErrorJitCompilerNotFound, "PTX JIT compiler library not found"),
    GPUSIM_ERROR(cudaErrorUnsupportedPtxVersion, "the provided PTX was compiled with an unsupported toolchain."),
    GPUSIM_ERROR(cudaErrorInvalidSource, "device kernel image is invalid"),
    GPUSIM_ERROR(cudaErrorFileNotFound, "file not found"),
    GPUSIM_ERROR(cudaErrorSharedObjectSymbolNotFound, "shared object symbol not found"),
    GPUSIM_ERROR(cudaErrorSharedObjectInitFailed, "shared object initialization failed"),
    GPUSIM_ERROR(cudaErrorOperatingSystem, "OS call failed or operation not supported on this OS"),
    GPUSIM_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    GPUSIM_ERROR(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    GPUSIM_ERROR(cudaErrorSymbolNotFound, "named symbol not found"),
    GPUSIM_ERROR(cudaErrorNotReady, "device not ready"),
    GPUSIM_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    GPUSIM_ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    GPUSIM_ERROR(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    GPUSIM_ERROR(cudaErrorPeerAccessAlreadyEnabled, "peer access is already enabled"),
    GPUSIM_ERROR(cudaErrorPeerAccessNotEnabled, "peer access has not been enabled"),
    GPUSIM_ERROR(cudaErrorSetOnActiveProcess, "cannot set while device is active in this process"),
    GPUSIM_ERROR(cudaErrorContextIsDestroyed, "context is destroyed"),
    GPUSIM_ERROR(cudaErrorAssert, "device-side assert triggered"),
    GPUSIM_ERROR(cudaErrorHostMemoryAlreadyRegistered, "part or all of the requested memory range is already mapped"),
    GPUSIM_ERROR(cudaErrorHostMemoryNotRegistered, "pointer does not correspond to a registered memory region"),
    GPUSIM_ERROR(cudaErrorHardwareStackError, "hardware stack error"),
    GPUSIM_ERROR(cudaErrorIllegalInstruction, "an illegal instruction was encountered"),
    GPUSIM_ERROR(cudaErrorMisalignedAddress, "misaligned address"),
    GPUSIM_ERROR(cudaErrorInvalidAddressSpace, "operation not supported on global/shared address space"),
    GPUSIM_ERROR(cudaErrorInvalidPc, "invalid program counter"),
    GPUSIM_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    GPUSIM_ERROR(cudaErrorCooperativeLaunchTooLarge, "too many blocks in cooperative launch"),
    GPUSIM_ERROR(cudaErrorNotPermitted, "operation not permitted"),
    GPUSIM_ERROR(cudaErrorNotSupported, "operation not supported"),
    GPUSIM_ERROR(cudaErrorSystemNotReady, "system not yet initialized"),
    GPUSIM_ERROR(cudaErrorSystemDriverMismatch, "system has unsupported display driver / cuda driver combination"),
    GPUSIM_ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    GPUSIM_ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    GPUSIM_ERROR(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences"),
    GPUSIM_ERROR(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
    GPUSIM_ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    GPUSIM_ERROR(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    GPUSIM_ERROR(cudaErrorStreamCaptureImplicit,
                 "operation would make the legacy stream depend on a capturing blocking stream"),
    GPUSIM_ERROR(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
    GPUSIM_ERROR(cudaErrorStreamCaptureWrongThread,
                 "attempt to terminate a thread-local capture sequence from another thread"),
    GPUSIM_ERROR(cudaErrorTimeout, "wait operation timed out"),
    GPUSIM_ERROR(
        cudaErrorGraphExecUpdateFailure,
        "the graph update was not performed because it included changes which violated constraints specific to "
        "instantiated graph update"),
    GPUSIM_ERROR(cudaErrorInvalidClusterSize, "cluster misconfiguration"),
    GPUSIM_ERROR(cudaErrorUnknown, "unknown error"),
};

#undef GPUSIM_ERROR

const ErrorText* find_error(cudaError_t code) {
  const auto* found =
      std::find_if(kErrors.begin(), kErrors.end(), [code](const ErrorText& error) { return error.code == code; });
  return found == kErrors.end() ? nullptr : found;
}

}  // namespace
}  // namespace gpusim::runtime

using namespace gpusim::runtime;

extern "C" {

const char* cudaGetErrorName(cudaError_t code) {
  const ErrorText* const error = find_error(code);
  return error == nullptr ? "unrecognized error code" : error->name;
}

const char* cudaGetErrorString(cudaError_t code) {
  const ErrorText* const error = find_error(code);
  return error == nullptr ? "unrecognized error code" : error->text;
}

cudaError_t cudaPeekAtLastError() { return last_error(); }

// A kernel that ended badly stays the last error: the next call returns it again.
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error();
  State& state = State::get();
  const std::lock_guard lock(state.mutex);
  last_error() = error == state.sticky ? error : cudaSuccess;
  return error;
}

}  // extern "C"
