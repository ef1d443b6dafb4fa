# CUDA programs, run by gpusim: nvcc from PATH, CUDA_HOME, /usr/local/cuda, or the wheels that scripts/deps unpacks into
# .cache/cuda. Without one, CUDA is off and everything else is built.
#
# gpusim_program(NAME [SEPARABLE] [ARCH 80] [DEFINITIONS ...] [OPTIONS ...] SOURCES a.cu b.cpp ...): an executable whose kernels the
# simulator runs. ARCH: the PTX it carries, 80, 90 or 90a; several give several. OPTIONS go to nvcc. SEPARABLE: sources
# see each other's device code (-rdc=true), where DSV2_HAVE_DEVICE_LINK.
option(DSV2_CUDA "Build what needs nvcc where there is one" ON)

set(DSV2_HAVE_CUDA FALSE)
if(DSV2_CUDA)
  find_program(DSV2_NVCC nvcc HINTS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" /usr/local/cuda/bin
                                    "${PROJECT_SOURCE_DIR}/.cache/cuda/bin")
  if(DSV2_NVCC)
    execute_process(COMMAND "${DSV2_NVCC}" --version OUTPUT_VARIABLE version ERROR_QUIET)
    string(REGEX MATCH "V([0-9.]+)" version "${version}")
    set(DSV2_NVCC_VERSION "${CMAKE_MATCH_1}")
    file(REAL_PATH "${DSV2_NVCC}" nvcc)
    cmake_path(GET nvcc PARENT_PATH folder)
    cmake_path(GET folder PARENT_PATH folder)
    find_path(DSV2_CUDA_INCLUDE cuda_runtime_api.h HINTS "${folder}/include" "${folder}/targets/x86_64-linux/include"
                                                         NO_DEFAULT_PATH)
    if(NOT DSV2_CUDA_INCLUDE)
      message(STATUS "dsv2: ${DSV2_NVCC} has no cuda_runtime_api.h beside it; building without CUDA")
    elseif(DSV2_NVCC_VERSION VERSION_LESS 13)
      message(STATUS "dsv2: ${DSV2_NVCC} is of CUDA ${DSV2_NVCC_VERSION}, 13.0 is needed; building without CUDA")
    else()
      set(DSV2_HAVE_CUDA TRUE)
      # What joins separately compiled device code; the wheels of 13.0 leave it out.
      set(DSV2_HAVE_DEVICE_LINK FALSE)
      if(EXISTS "${folder}/bin/crt/link.stub")
        set(DSV2_HAVE_DEVICE_LINK TRUE)
      endif()
      message(STATUS "dsv2: CUDA programs by ${DSV2_NVCC} ${DSV2_NVCC_VERSION}")
    endif()
  else()
    message(STATUS "dsv2: nvcc not found; building without CUDA")
  endif()
endif()
# nvcc knows the g++ of its time; the project's own compiler may be another.
set(DSV2_NVCC_HOST_COMPILER "${CMAKE_CXX_COMPILER}")
if(NOT CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  find_program(DSV2_GXX g++)
  set(DSV2_NVCC_HOST_COMPILER "${DSV2_GXX}")
endif()

# What backend cuda is linked with. The wheel of cuBLAS has its library by the full name only.
set(hints HINTS "${folder}/lib64" "${folder}/lib" "${folder}/targets/x86_64-linux/lib" NO_DEFAULT_PATH)
find_library(DSV2_CUDART cudart_static ${hints})
find_library(DSV2_CUBLASLT NAMES cublasLt libcublasLt.so.13 ${hints})
find_path(DSV2_CUBLAS_INCLUDE cublasLt.h HINTS "${DSV2_CUDA_INCLUDE}" NO_DEFAULT_PATH)

# cuda_objects(VARIABLE [SEPARABLE] [ARCH 80] [SASS 90 ...] [DEFINITIONS ...] [OPTIONS ...] SOURCES ...): compiles them
# with nvcc and puts the object files into VARIABLE. ARCH: PTX of these; SASS: machine code of these. OPTIONS go to nvcc.
function(cuda_objects variable)
  cmake_parse_arguments(PARSE_ARGV 1 arg "SEPARABLE" "FOLDER" "ARCH;SASS;DEFINITIONS;OPTIONS;SOURCES")
  if(NOT DSV2_HAVE_CUDA)
    message(FATAL_ERROR "cuda_objects(${variable}): there is no nvcc; ask DSV2_HAVE_CUDA first")
  endif()
  if(NOT arg_ARCH)
    set(arg_ARCH 80)
  endif()
  if(NOT arg_FOLDER)
    set(arg_FOLDER ${variable})
  endif()
  set(link_flags -ccbin "${DSV2_NVCC_HOST_COMPILER}" -Xcompiler=-fPIC)
  foreach(arch IN LISTS arg_ARCH)
    list(APPEND link_flags -gencode arch=compute_${arch},code=compute_${arch})
  endforeach()
  foreach(arch IN LISTS arg_SASS)
    list(APPEND link_flags -gencode arch=compute_${arch},code=sm_${arch})
  endforeach()
  set(flags -std=c++20 -O2 -lineinfo -cudart none ${link_flags})
  if(arg_SEPARABLE)
    list(APPEND flags -rdc=true)
  endif()
  list(TRANSFORM arg_DEFINITIONS PREPEND -D)
  set(objects)
  foreach(source IN LISTS arg_SOURCES)
    cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}")
    cmake_path(GET source FILENAME file)
    set(object "${CMAKE_CURRENT_BINARY_DIR}/${arg_FOLDER}.dir/${file}.o")
    add_custom_command(OUTPUT "${object}" DEPENDS "${source}" DEPFILE "${object}.d" VERBATIM
      COMMAND "${CMAKE_COMMAND}" -E make_directory "${CMAKE_CURRENT_BINARY_DIR}/${arg_FOLDER}.dir"
      COMMAND "${DSV2_NVCC}" ${flags} ${arg_DEFINITIONS} ${arg_OPTIONS} "-I${PROJECT_SOURCE_DIR}"
              -MD -MF "${object}.d" -c "${source}" -o "${object}"
      COMMENT "nvcc ${file} for ${arg_FOLDER}")
    list(APPEND objects "${object}")
  endforeach()
  if(arg_SEPARABLE)  # nvlink finds no machine code to join; its object says which PTX belongs together
    set(linked "${CMAKE_CURRENT_BINARY_DIR}/${arg_FOLDER}.dir/linked.o")
    add_custom_command(OUTPUT "${linked}" DEPENDS ${objects} VERBATIM
      COMMAND "${DSV2_NVCC}" -dlink -cudadevrt none ${link_flags} ${objects} -o "${linked}"
      COMMENT "nvcc -dlink for ${arg_FOLDER}")
    list(APPEND objects "${linked}")
  endif()
  set(${variable} ${objects} PARENT_SCOPE)
endfunction()

function(gpusim_program name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "SEPARABLE" "" "ARCH;DEFINITIONS;OPTIONS;SOURCES")
  set(separable)
  if(arg_SEPARABLE)
    set(separable SEPARABLE)
  endif()
  cuda_objects(objects ${separable} FOLDER ${name} ARCH ${arg_ARCH} DEFINITIONS ${arg_DEFINITIONS}
               OPTIONS ${arg_OPTIONS} SOURCES ${arg_SOURCES})
  add_executable(${name} ${objects})
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(${name} PRIVATE dsv2_gpusim_runtime)
endfunction()
