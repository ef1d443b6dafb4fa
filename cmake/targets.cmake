# dsv2_library(NAME SOURCES...): a room of the house as the static library dsv2_NAME (alias dsv2::NAME).
# dsv2_options(TARGET): warnings, sanitizers, and the include root, so that files name each other "room/file.h".
function(dsv2_options target)
  target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow $<$<BOOL:${DSV2_WERROR}>:-Werror>)
  if(DSV2_SANITIZE)
    target_compile_options(${target} PUBLIC
      $<BUILD_INTERFACE:-fsanitize=${DSV2_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer>)
    # g++ warns falsely where it instruments, as its manual says of -Wmaybe-uninitialized.
    target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
    target_link_options(${target} PUBLIC $<BUILD_INTERFACE:-fsanitize=${DSV2_SANITIZE}>)
  endif()
endfunction()

function(dsv2_library name)
  add_library(dsv2_${name} STATIC ${ARGN})
  add_library(dsv2::${name} ALIAS dsv2_${name})
  set_target_properties(dsv2_${name} PROPERTIES EXPORT_NAME ${name})
  dsv2_options(dsv2_${name})
endfunction()
