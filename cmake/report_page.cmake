# dsv2_report_page(TARGET): adds a report_page.cpp, made from harness/report_page.cpp.in, that holds the HTML template and
# Chart.js. Without Chart.js (Debian: libjs-chart.js, or -DDSV2_CHART_JS=FILE) pages have no charts.
find_file(DSV2_CHART_JS NAMES chart.umd.js chart.min.js DOC "Chart.js 3.9 or later, minified, for dsv2 report"
          PATHS /usr/share/javascript/chart.js /usr/share/nodejs/chart.js/dist NO_DEFAULT_PATH)
if(NOT DSV2_CHART_JS)
  message(STATUS "Chart.js not found: dsv2 report leaves its charts out")
endif()

function(dsv2_report_page target)
  set(template "${PROJECT_SOURCE_DIR}/reports/report.html.in")
  file(READ "${template}" REPORT_TEMPLATE)
  set(CHART_JS "")
  if(DSV2_CHART_JS)
    file(READ "${DSV2_CHART_JS}" CHART_JS)
  endif()
  configure_file(report_page.cpp.in report_page.cpp @ONLY)
  target_sources(${target} PRIVATE "${CMAKE_CURRENT_BINARY_DIR}/report_page.cpp")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${template}" ${DSV2_CHART_JS})
endfunction()
