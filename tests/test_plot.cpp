#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <map>
#include <regex>
#include <set>
#include <vector>

#include "core/grid.h"
#include "core/quantizer.h"
#include "tests/command.h"
#include "tests/reference.h"

// ulp plot: the picture is read back as a program would read it.
#if defined(ULP_COMMAND)

namespace fs = std::filesystem;
using namespace ulp;
using namespace ulp::command;

namespace {

struct Element {
  std::string name, text;  // text: what stands directly in it
  std::map<std::string, std::string> attributes;
  int parent = -1;
};

/// Text and attribute values of XML: every & begins one of the five entities.
std::string unescaped(std::string text) {
  CHECK(!std::regex_search(text, std::regex("&(?!(lt|gt|quot|#39|amp);)|<")));
  const std::pair<const char*, const char*> kEntities[] = {
      {"&lt;", "<"}, {"&gt;", ">"}, {"&quot;", "\""}, {"&#39;", "'"}, {"&amp;", "&"}};
  for (const auto& [entity, character] : kEntities)
    text = std::regex_replace(text, std::regex(entity), character);
  return text;
}

std::map<std::string, std::string> attributes_of(const std::string& tag) {
  static const std::regex whole(R"(( [a-z][-A-Za-z0-9:]*="[^"<]*")* ?)");
  static const std::regex each(R"re( ([-A-Za-z0-9:]+)="([^"]*)")re");
  CHECK_MESSAGE(std::regex_match(tag, whole), tag.substr(0, 200));
  std::map<std::string, std::string> all;
  for (std::sregex_iterator at(tag.begin(), tag.end(), each), end; at != end; ++at)
    CHECK(all.emplace((*at)[1], unescaped((*at)[2])).second);
  return all;
}

/// The elements of a well-formed document in their order: tags that match, quoted attributes, one root, ids once.
class Document {
 public:
  explicit Document(const std::string& text) {
    const std::string head = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
    REQUIRE(text.starts_with(head));
    int open = -1;
    for (size_t at = head.size(); at < text.size();) {
      const size_t tag = text.find('<', at);
      if (tag != at) {
        const std::string between = text.substr(at, tag - at);
        if (open >= 0)
          element(open).text += unescaped(between);
        else
          CHECK(between == "\n");
        if (tag == text.npos) break;
      }
      const size_t end = text.find('>', tag);
      REQUIRE(end != text.npos);
      open = read_tag(text.substr(tag + 1, end - tag - 1), open);
      at = end + 1;
    }
    CHECK(open == -1);
    std::set<std::string> ids;
    for (const Element& e : elements_)
      if (e.attributes.contains("id")) CHECK(ids.insert(e.attributes.at("id")).second);
  }

  const std::vector<Element>& elements() const { return elements_; }

  const Element& with_id(const std::string& id) const {
    for (const Element& e : elements_)
      if (e.attributes.contains("id") && e.attributes.at("id") == id) return e;
    FAIL("no element has the id " << id);
    return elements_.front();
  }

  /// The path with this class in the group; empty if there is none.
  std::string path(const std::string& group, const std::string& kind) const {
    const int parent = static_cast<int>(&with_id(group) - elements_.data());
    for (const Element& e : elements_)
      if (e.parent == parent && e.attributes.contains("class") && e.attributes.at("class") == kind)
        return e.attributes.at("d");
    return "";
  }

  /// Where the ticks of a group stand, ascending.
  std::vector<double> ticks(const std::string& group, std::initializer_list<const char*> kinds = {
                                                          "normal", "subnormal", "zero"}) const {
    static const std::regex begin("M(-?[0-9.]+) ");
    std::vector<double> x;
    for (const char* kind : kinds) {
      const std::string d = path(group, kind);
      for (std::sregex_iterator at(d.begin(), d.end(), begin), end; at != end; ++at)
        x.push_back(std::stod((*at)[1]));
    }
    std::sort(x.begin(), x.end());
    return x;
  }

 private:
  Element& element(int i) { return elements_[static_cast<size_t>(i)]; }

  int read_tag(const std::string& tag, int open) {
    if (tag[0] == '/') {
      REQUIRE(open >= 0);
      CHECK(tag.substr(1) == element(open).name);
      return element(open).parent;
    }
    const bool empty = tag.back() == '/';
    const std::string inside = tag.substr(0, tag.size() - (empty ? 1 : 0));
    const size_t space = std::min(inside.find(' '), inside.size());
    CHECK((open >= 0 || elements_.empty()));
    elements_.push_back({inside.substr(0, space), "", attributes_of(inside.substr(space)), open});
    return empty ? open : static_cast<int>(elements_.size()) - 1;
  }

  std::vector<Element> elements_;
};

/// What a value of the axis becomes in the drawing.
struct Ruler {
  double from, to, begin, end;
  Ruler(const Document& document, const std::string& id, const std::string& attribute) {
    std::istringstream(document.with_id(id).attributes.at(attribute)) >> from >> to >> begin >> end;
  }
  double at(double value) const { return begin + (value - from) / (to - from) * (end - begin); }
};

std::string picture(const std::string& arguments) {
  const Result r = ulp_command("plot --out - " + arguments);
  CAPTURE(arguments);
  CAPTURE(r.err);
  CHECK(r.status == 0);
  CHECK(r.err.empty());
  return r.out;
}

Document plot(const std::string& formats) { return Document(picture("--formats " + formats)); }

/// Every finite number of an element-wise format, ascending.
std::vector<double> numbers_of(const char* name) {
  std::set<double> all;
  for (const double v : reference::Reference(name).values())
    if (std::isfinite(v)) all.insert(v);
  return {all.begin(), all.end()};
}

/// The largest |x − Q(x)| / x over many x between two numbers, by the definition.
double error_between(const Grid& grid, double low, double high) {
  constexpr int kSamples = 1 << 14;
  double worst = 0;
  for (int i = 1; i < kSamples; ++i) {
    const auto x = static_cast<float>(low + (high - low) * i / kSamples);
    worst = std::max(worst, std::abs(double{x} - double{quantise_value(x, grid, 0)}) / double{x});
  }
  return worst;
}

/// The heights of an envelope's steps, in their order, and where they begin.
std::vector<std::pair<double, double>> steps_of(const std::string& path) {
  static const std::regex command("([MVH])(-?[0-9.]+)( (-?[0-9.]+))?");
  std::vector<std::pair<double, double>> steps;
  double x = 0;
  for (std::sregex_iterator at(path.begin(), path.end(), command), end; at != end; ++at) {
    const double first = std::stod((*at)[2]);
    if ((*at)[1] == "M") steps.emplace_back(first, std::stod((*at)[4]));
    if ((*at)[1] == "V") steps.emplace_back(x, first);
    if ((*at)[1] == "H") x = first;
  }
  return steps;
}

struct Box {
  double left, right, top, bottom;
  std::string text;
};

/// The labels' boxes in a sans-serif font of middling width.
std::vector<Box> boxes(const Document& document) {
  std::vector<Box> all;
  for (const Element& e : document.elements()) {
    if (e.name != "text") continue;
    const auto number = [&](const char* name) { return std::stod(e.attributes.at(name)); };
    const auto letters = std::count_if(e.text.begin(), e.text.end(), [](char c) {
      return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    });
    const double size = number("font-size"), width = 0.56 * size * static_cast<double>(letters);
    const auto anchor = e.attributes.find("text-anchor");
    const double before = anchor == e.attributes.end() ? 0 : anchor->second == "end" ? 1 : 0.5;
    const double left = number("x") - before * width;
    all.push_back({left, left + width, number("y") - 0.75 * size, number("y"), e.text});
  }
  return all;
}

const char* const kLong =
    "binary8p3-finite-unsigned-sat,binary8p4-finite-unsigned-sat,binary8p5-finite-unsigned-sat,"
    "e5m2-fnuz-sat-ftz-bias20,fixed8.4-sym-sat-t128x128-rceil,fixed8.4-noclamp,fixed1.0,e4m3-ftz";
const char* const kMany = "fp32,bf16,fp16,e6m9,tf32,posit16.2,fixed16.8,e4m3";
const char* const kBlocks = "mxfp8,mxfp4,mxint8,bfp8-axis0,hbfp8,e3m4-g16-ceil,nf4,pow2x4";

}  // namespace

TEST_SUITE("plot") {
  TEST_CASE("the document: well-formed, self-contained, with a title and a description") {
    for (const char* formats : {"e2m1", "e4m3,e5m2,posit8.1", kLong, kMany, kBlocks}) {
      for (const char* theme : {"light", "dark"}) {
        CAPTURE(std::string(formats));
        const std::string text = picture(std::string("--theme ") + theme + " --formats " + formats);
        CHECK(text.size() < 1 << 20);
        const Document document(text);
        const Element& root = document.elements().front();
        CHECK(root.name == "svg");
        CHECK(root.attributes.at("xmlns") == "http://www.w3.org/2000/svg");
        CHECK(root.attributes.at("role") == "img");
        CHECK(document.with_id("title").name == "title");
        CHECK(document.with_id("description").name == "desc");
        for (const char* word : {"<script", "href", "url(http", "@import", "nan\"", "inf\""})
          CHECK(text.find(word) == std::string::npos);
      }
    }
  }

  TEST_CASE("every number has a tick, and in its place") {
    for (const char* name : {"e4m3", "e5m2", "e2m1", "e3m2", "e4m3-fnuz", "e4m3-ftz", "fixed8.4",
                             "fixed4.1-u", "binary8p4"}) {
      CAPTURE(std::string(name));
      const std::vector<double> numbers = numbers_of(name);
      const Document document = plot(name);
      const Ruler positive(document, "log", "data-axis");
      const double middle = document.ticks("log-0", {"zero"}).at(0);
      const std::vector<double> ticks = document.ticks("log-0");
      REQUIRE(ticks.size() == numbers.size());
      for (size_t i = 0; i < ticks.size(); ++i) {
        const double v = numbers[i];
        const double away = v == 0 ? 0 : positive.at(std::log2(std::abs(v))) - middle;
        CHECK(std::abs(ticks[i] - (middle + std::copysign(away, v))) < 0.011);
        if (i > 0) CHECK(ticks[i] > ticks[i - 1]);
      }
      const Ruler linear(document, "linear", "data-axis");
      std::vector<double> near;
      for (const double v : numbers)
        if (std::abs(v) <= linear.to) near.push_back(linear.at(v));
      const std::vector<double> shown = document.ticks("linear-0");
      REQUIRE(shown.size() == near.size());
      for (size_t i = 0; i < near.size(); ++i) CHECK(std::abs(shown[i] - near[i]) < 0.011);
    }
  }

  TEST_CASE("published counts of numbers and of subnormal ones") {
    struct Known {
      const char* name;
      size_t numbers, subnormal;
    };
    for (const Known& k : std::initializer_list<Known>{{"e4m3", 253, 14},
                                                       {"e5m2", 247, 6},
                                                       {"e4m3-ftz", 239, 0},
                                                       {"e2m1", 15, 2},
                                                       {"posit8.1", 255, 0},
                                                       {"nf4", 16, 0},
                                                       {"fixed8.4-wrap", 256, 0},
                                                       {"fixed1.0", 2, 0},
                                                       {"mxfp4", 15, 2},
                                                       {"mxint8", 255, 0},
                                                       {"bfp8", 255, 0},
                                                       {"hbfp8", 511, 0}}) {
      CAPTURE(std::string(k.name));
      const Document document = plot(k.name);
      CHECK(document.ticks("log-0").size() == k.numbers);
      CHECK(document.ticks("log-0", {"subnormal"}).size() == k.subnormal);
    }
  }

  TEST_CASE("known places: uniform, subnormal, tapered, a table, a block") {
    const Document four = plot("fixed4.0,e4m3,posit8.1,nf4");
    const auto distances = [&](const char* group) {
      std::vector<double> x = four.ticks(group), all;
      for (size_t i = 1; i < x.size(); ++i) all.push_back(x[i] - x[i - 1]);
      return all;
    };
    const Ruler linear(four, "linear", "data-axis"), zero(four, "zero", "data-axis");
    const double unit = zero.at(1) - zero.at(0);
    for (const double d : distances("linear-0"))
      CHECK(std::abs(d - (linear.at(1) - linear.at(0))) < 0.021);
    // e4m3 from 0 on in units of 2^-9: 0 … 16, then every second.
    const std::vector<double> e4m3 = distances("zero-1");
    REQUIRE(e4m3.size() == 16 + 4);
    for (size_t i = 0; i < e4m3.size(); ++i)
      CHECK(std::abs(e4m3[i] - (i < 16 ? unit : 2 * unit)) < 0.021);
    CHECK(four.ticks("zero-1", {"subnormal"}).size() == 7);
    // posit8.1: 0, then 2^-12 · 1, 4, 8, 16, 24.
    const std::vector<double> posit = four.ticks("zero-2");
    REQUIRE(posit.size() == 6);
    for (size_t i = 0; i < posit.size(); ++i)
      CHECK(std::abs(posit[i] - zero.at(std::array{0, 1, 4, 8, 16, 24}[i])) < 0.011);
    const std::vector<double> nf4 = four.ticks("linear-3");
    REQUIRE(nf4.size() == 16);
    CHECK(std::abs(nf4[0] - linear.at(-1)) < 0.011);
    CHECK(std::abs(nf4[1] - linear.at(-0.6961928009986877)) < 0.011);
    CHECK(std::abs(nf4[15] - linear.at(1)) < 0.011);
    // amax 1 makes the scale of mxfp4 2^-2: 6 · 2^-2 is the largest.
    const Document block = plot("mxfp4,bfp8");
    const Ruler axis(block, "linear", "data-axis");
    CHECK(std::abs(block.ticks("linear-0").back() - axis.at(1.5)) < 0.011);
    CHECK(std::abs(block.ticks("linear-1").back() - axis.at(127.0 / 64)) < 0.011);
    CHECK(picture("--formats mxfp4,bfp8").find("mxfp4, bfp8: the numbers of one block") !=
          std::string::npos);
  }

  TEST_CASE("the envelope is the worst relative error between two numbers") {
    for (const char* name : {"e4m3", "e5m2", "e2m1", "fixed8.4", "posit8.1", "posit6.2", "nf4"}) {
      CAPTURE(std::string(name));
      const Grid grid = make_grid(Quantizer(name));
      const Document document = plot(name);
      const Ruler x(document, "error", "data-axis"), y(document, "error", "data-y");
      const auto steps = steps_of(document.path("error-0", "envelope"));
      const auto all = document.ticks("log-0"), zero = document.ticks("log-0", {"zero"});
      REQUIRE(steps.size() + 1 ==
              static_cast<size_t>(std::count_if(all.begin(), all.end(),
                                                [&](double at) { return at > zero.at(0); })));
      for (size_t i = 0; i < steps.size(); ++i) {
        // Where a step begins is a number: the one that x rounds to.
        const auto number = [&](double place) {
          const double exponent = x.from + (place - x.begin) / (x.end - x.begin) * (x.to - x.from);
          return double{quantise_value(static_cast<float>(std::exp2(exponent)), grid, 0)};
        };
        const double low = number(steps[i].first);
        const double high =
            i + 1 < steps.size() ? number(steps[i + 1].first) : limits_of(Format::parse(name)).max;
        CHECK(high > low);
        CHECK(std::abs(steps[i].second - y.at(std::log2(error_between(grid, low, high)))) < 0.05);
      }
    }
  }

  TEST_CASE("many numbers: an area, and the envelope's bounds") {
    const Document document = plot("fp32,bf16");
    CHECK(document.ticks("log-0") == document.ticks("log-0", {"zero"}));
    CHECK(!document.path("log-1", "density").empty());
    CHECK(!document.path("linear-1", "density").empty());
    const Ruler x(document, "error", "data-axis"), y(document, "error", "data-y");
    const auto steps = steps_of(document.path("error-1", "envelope"));
    int normal = 0;
    for (const auto& [place, height] : steps) {
      if (place < x.at(-125)) continue;
      ++normal;
      CHECK(height <= y.at(-9) + 0.011);  // y grows downwards
      CHECK(height >= y.at(std::log2(0x1p-8 / (1 + 0x1p-8))) - 0.011);
    }
    CHECK(normal > 300);
    CHECK(picture("--formats fp32,bf16").find("fp32, bf16: more than 1024 numbers") !=
          std::string::npos);
  }

  TEST_CASE("no two labels overlap, and none leaves the picture") {
    for (const char* formats :
         {"e2m1", "fp32", "e4m3,e5m2,posit8.1", "fp32,bf16,e2m1", kLong, kMany, kBlocks}) {
      CAPTURE(std::string(formats));
      const std::vector<Box> all = boxes(plot(formats));
      for (size_t i = 0; i < all.size(); ++i) {
        CAPTURE(all[i].text);
        CHECK(all[i].left >= 0);
        CHECK(all[i].right <= 1280);
        for (size_t j = 0; j < i; ++j) {
          CAPTURE(all[j].text);
          CHECK((all[i].left >= all[j].right || all[j].left >= all[i].right ||
                 all[i].top >= all[j].bottom || all[j].top >= all[i].bottom));
        }
      }
    }
  }

  TEST_CASE("formats whose scale is no power of two show their elements, and say so") {
    for (const char* name : {"nvfp4", "e2m1-g16-scalee4m3", "e2m1+scale=current"}) {
      CAPTURE(std::string(name));
      const std::string text = picture(std::string("--formats ") + name);
      CHECK(text.find(std::string(name) + ": the numbers of an element alone") !=
            std::string::npos);
      CHECK(text.find("15 numbers, e2m1") != std::string::npos);
      CHECK(Document(text).ticks("log-0") == plot("e2m1").ticks("log-0"));
    }
    // Scaled elements saturate.
    CHECK(picture("--formats e5m2").find("→ Inf") != std::string::npos);
    CHECK(picture("--formats e5m2+scale=current").find("→ Inf") == std::string::npos);
    // A rotation changes which values come, not which numbers there are.
    CHECK(plot("mxfp4+rht16").ticks("log-0") == plot("mxfp4").ticks("log-0"));
    CHECK(picture("--formats mxfp4+rht16").find("mxfp4+rht16: the numbers that rotated") !=
          std::string::npos);
  }

  TEST_CASE("title, width, range; the same bytes every time") {
    const Folder folder;
    const std::string file = folder / "picture.svg";
    const std::string options =
        "--formats e4m3,bf16 --title '<b> & \"c\" '\\''d'\\'' \x01\xff é \xED\xA0\x80\xC0\xAF'";
    const std::string text = picture(options);
    CHECK(text.find("<b>") == std::string::npos);
    CHECK(Document(text).with_id("title").text ==
          "<b> & \"c\" 'd' \uFFFD\uFFFD é \uFFFD\uFFFD\uFFFD\uFFFD\uFFFD");
    const Result r = ulp_command("plot --out '" + file + "' " + options);
    CHECK(r.status == 0);
    CHECK(r.out == file + ": " + std::to_string(text.size()) + " bytes\n");
    CHECK(slurp(file) == text);
    CHECK(picture(options) == text);
    const Document narrow(picture("--formats e4m3 --width 640")), wide = plot("e4m3");
    CHECK(narrow.elements().front().attributes.at("width") == "640");
    CHECK(wide.elements().front().attributes.at("width") == "1280");
    CHECK(narrow.elements().front().attributes.at("viewBox") ==
          wide.elements().front().attributes.at("viewBox"));
    const Document part = plot("e4m3 --range -6:8");
    CHECK(part.ticks("log-0").size() == 2 * (14 * 8 + 1) + 1);
    CHECK(Ruler(part, "range", "data-axis").from == -6);
  }

  TEST_CASE("what it refuses leaves OUT as it was") {
    const Folder folder;
    const std::string out = folder / "old.svg";
    std::ofstream(out) << "old";
    const auto refused = [&](const std::string& options, int status,
                             std::initializer_list<const char*> words) {
      check_refused("plot --out '" + out + "' " + options, status, words);
      CHECK(slurp(out) == "old");
      CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 1);
    };
    refused("", 2, {"--formats"});
    refused("--formats ''", 2, {"--formats", "got nothing"});
    refused("--formats e4m3,", 2, {"--formats", "got nothing"});
    refused("--formats e4m3,e9m9", 2, {"--formats", "e9m9"});
    refused("--formats e4m3:sr", 2, {"without a rounding", "e4m3:sr", "write e4m3"});
    refused("--formats e4m3:rne", 2, {"without a rounding"});
    refused("--formats e4m3,e4m3,e4m3,e4m3,e4m3,e4m3,e4m3,e4m3,e4m3", 2, {"1 to 8", "got 9"});
    refused("--formats e4m3 --width 0", 2, {"--width", "'0'"});
    refused("--formats e4m3 --width big", 2, {"--width", "'big'"});
    refused("--formats e4m3 --theme blue", 2, {"--theme", "light or dark", "'blue'"});
    for (const char* range : {"1", "2:1", "1:1", "-150:0", "0:129", "1:2:3", "a:b", ":", "''"})
      refused(std::string("--formats e4m3 --range ") + range, 2, {"--range", "LO:HI"});
    refused("--formats e4m3 --colour red", 2, {"--colour"});
    refused("--formats e4m3 extra", 2, {"extra"});
    check_refused("plot --formats e4m3", 2, {"--out"});
    for (const char* name : {"picture.png", "picture", "picture.svg.txt"})
      check_refused("plot --formats e4m3 --out '" + (folder / name) + "'", 2, {".svg", name});
    check_refused("plot --formats e4m3 --out '" + (folder / "no/where.svg") + "'", 1,
                  {"where.svg"});
    fs::create_directory(folder.path / "folder.svg");
    check_refused("plot --formats e4m3 --out '" + (folder / "folder.svg") + "'", 1,
                  {"folder.svg", "not a regular file"});
    CHECK(fs::is_directory(folder.path / "folder.svg"));
    if (geteuid() != 0) {  // nothing is unwritable for root
      fs::permissions(folder.path, fs::perms::owner_read | fs::perms::owner_exec);
      check_refused("plot --formats e4m3 --out '" + out + "'", 1, {"old.svg"});
      fs::permissions(folder.path, fs::perms::owner_all);
      CHECK(slurp(out) == "old");
    } else {
      check_refused("plot --formats e4m3 --out /proc/picture.svg", 1, {"/proc/picture.svg"});
    }
  }
}

#endif
