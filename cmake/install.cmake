# cmake --install: the dsv2 command, the decoders as static libraries, and what find_package(dsv2) reads.
if(NOT DSV2_INSTALL)
  return()
endif()
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# Under their own root, since headers name each other "room/file.h".
set(headers "${CMAKE_INSTALL_INCLUDEDIR}/dsv2")
set(package "${CMAKE_INSTALL_LIBDIR}/cmake/dsv2")
install(TARGETS dsv2 RUNTIME)
install(TARGETS dsv2_model dsv2_reference dsv2_optimized dsv2_cpu EXPORT dsv2Targets ARCHIVE INCLUDES DESTINATION "${headers}")
install(DIRECTORY model/ DESTINATION "${headers}/model" FILES_MATCHING PATTERN "*.h")
install(FILES reference/backend.h DESTINATION "${headers}/reference")
install(FILES optimized/cpu/backend.h DESTINATION "${headers}/optimized/cpu")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")

install(EXPORT dsv2Targets NAMESPACE dsv2:: DESTINATION "${package}")
configure_package_config_file(cmake/dsv2Config.cmake.in dsv2Config.cmake INSTALL_DESTINATION "${package}")
write_basic_package_version_file(dsv2ConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/dsv2Config.cmake" "${PROJECT_BINARY_DIR}/dsv2ConfigVersion.cmake"
        DESTINATION "${package}")
