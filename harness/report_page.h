// What CMake embeds for `dsv2 report`: files of the build, as text.
#pragma once

#include <string_view>

namespace dsv2::harness {

std::string_view report_template();  ///< reports/report.html.in; @CHART_JS@ and @DATA@ are to be filled in
std::string_view chart_js();         ///< Chart.js, minified; empty when CMake did not find it

}  // namespace dsv2::harness
