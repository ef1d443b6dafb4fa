# dsv2_version_source(TARGET): adds a version.cpp, made from harness/version.cpp.in, that says what is being built.
# Run as a script (cmake -P), it writes that file: at every build, so that the commit is the one built, not the one
# configured; an unchanged file is left alone.
if(CMAKE_SCRIPT_MODE_FILE)
  set(GIT_SHA unknown)
  set(GIT_DIRTY false)
  if(GIT AND EXISTS "${SOURCE_DIR}/.git")
    # A checkout owned by another user (a container's mount) is still the one being built.
    set(git "${GIT}" -c "safe.directory=${SOURCE_DIR}")
    execute_process(COMMAND ${git} rev-parse HEAD WORKING_DIRECTORY "${SOURCE_DIR}"
      OUTPUT_VARIABLE sha RESULT_VARIABLE failed OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(NOT failed)
      set(GIT_SHA "${sha}")
      execute_process(COMMAND ${git} --no-optional-locks status --porcelain --untracked-files=no
        WORKING_DIRECTORY "${SOURCE_DIR}" OUTPUT_VARIABLE changes ERROR_QUIET)
      if(changes)
        set(GIT_DIRTY true)
      endif()
    endif()
  endif()
  configure_file("${SOURCE_DIR}/harness/version.cpp.in" "${OUTPUT}" @ONLY)
  return()
endif()

set(DSV2_VERSION_SCRIPT "${CMAKE_CURRENT_LIST_FILE}")

function(dsv2_version_source target)
  find_package(Git QUIET)
  set(compiler "${CMAKE_CXX_COMPILER_ID}")
  if(compiler STREQUAL GNU)
    set(compiler g++)
  elseif(compiler STREQUAL Clang)
    set(compiler clang++)
  endif()
  string(TOUPPER "${CMAKE_BUILD_TYPE}" config)
  set(flags ${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${config}} ${OpenMP_CXX_FLAGS})
  if(DSV2_SANITIZE)
    list(APPEND flags -fsanitize=${DSV2_SANITIZE})
  endif()
  list(JOIN flags " " flags)
  string(REPLACE "\"" "\\\"" flags "${flags}")
  set(output "${CMAKE_CURRENT_BINARY_DIR}/version.cpp")
  add_custom_target(${target}_version BYPRODUCTS "${output}" COMMENT "" VERBATIM
    COMMAND "${CMAKE_COMMAND}" "-DSOURCE_DIR=${PROJECT_SOURCE_DIR}" "-DOUTPUT=${output}" "-DGIT=${GIT_EXECUTABLE}"
            "-DVERSION=${PROJECT_VERSION}" "-DCOMPILER=${compiler} ${CMAKE_CXX_COMPILER_VERSION}"
            "-DCOMPILE_FLAGS=${flags}" "-DBUILD_TYPE=${CMAKE_BUILD_TYPE}" -P "${DSV2_VERSION_SCRIPT}")
  target_sources(${target} PRIVATE "${output}")
  add_dependencies(${target} ${target}_version)
endfunction()
