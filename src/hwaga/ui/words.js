// The page's words in Korean and English, and what depends on the language: numbers, times, sizes.

const WORDS = {
  skip: ["Skip to the prompt", "프롬프트로 바로 가기"],
  settings: ["Settings", "설정"],
  make: ["Make pictures", "그림 만들기"],
  question: ["What shall we draw?", "무엇을 그릴까요?"],
  example: ["A red apple on a yellow background", "노란 배경의 빨간 사과"],
  startFrom: ["Start from a picture", "그림에서 시작"],
  style: ["Style", "화풍"],
  noStyle: ["As written", "그대로"],
  autoStyle: ["Auto", "자동"],
  styleBeyond: ["{n} more styles with Z-Image Turbo.", "Z-Image Turbo에서는 화풍이 {n}가지 더 있습니다."],
  shape: ["Shape", "모양"],
  autoShape: ["Auto", "자동"],
  industry: ["Business", "업종"],
  noIndustry: ["Any", "상관없음"],
  autoIndustry: ["Auto", "자동"],
  number: ["Pictures", "장수"],
  fewer: ["One fewer", "한 장 적게"],
  moreOf: ["One more", "한 장 더"],
  composed: ["What the model reads", "모델이 읽는 프롬프트"],
  nothingYet: ["Your words, and what style and business add to them, appear here.", "적은 글과, 화풍과 업종이 덧붙이는 말이 여기에 보입니다."],
  options: ["More settings", "더 자세히"],
  avoid: ["Leave out", "빼고 싶은 것"],
  seed: ["Seed", "시드"],
  seedHint: ["The same seed and settings make the same picture.", "시드와 설정이 같으면 같은 그림이 나옵니다."],
  random: ["Random", "무작위"],
  steps: ["Steps", "단계 수"],
  negative: ["Not in the picture", "그림에 없어야 할 것"],
  guidance: ["Guidance", "프롬프트 반영 정도"],
  sampler: ["Sampler", "샘플러"],
  badGuidance: ["Guidance is from 1 to 30.", "1부터 30까지입니다."],
  draw: ["Draw", "그리기"],
  sending: ["Sending…", "보내는 중…"],
  tokens: ["{n} of {limit} tokens", "{limit} 토큰 중 {n}"],
  tooLong: ["{n} of {limit} tokens: too long", "{limit} 토큰 중 {n}: 너무 깁니다"],
  empty: ["Write what the picture should show.", "그림에 무엇을 담을지 적어 주세요."],
  badSeed: ["A seed is a whole number from 0 to 4294967295.", "시드는 0부터 4294967295까지의 정수입니다."],
  badNumber: ["From 1 to 10 pictures at once.", "한 번에 1장부터 10장까지입니다."],
  badSteps: ["From 1 to {max} steps.", "1단계부터 {max}단계까지입니다."],
  startTitle: ["Starts from this picture", "이 그림에서 시작합니다"],
  strength: ["Strength", "변화 정도"],
  close: ["Close to it", "원본에 가깝게"],
  free: ["Freely", "자유롭게"],
  remove: ["Remove", "빼기"],
  badPicture: ["This is not a PNG, JPEG or WebP picture that can be opened.", "열 수 있는 PNG, JPEG, WebP 그림이 아닙니다."],
  bigPicture: ["This picture is over 40 MiB. Save it smaller.", "40 MiB가 넘는 그림입니다. 더 작게 저장해 주세요."],
  dropHere: ["Drop a picture to start from it. A picture made here brings its settings back.", "그림을 놓으면 거기서 시작합니다. 여기서 만든 그림은 설정을 되살립니다."],
  restored: ["Its settings are back.", "그림의 설정을 되살렸습니다."],
  otherModel: ["The server now has another model: {model}.", "서버의 모델이 바뀌었습니다: {model}."],
  startInstead: ["Start from it instead", "대신 이 그림에서 시작"],
  working: ["In progress", "그리는 중"],
  waitingFirst: ["Next in line", "바로 다음 차례"],
  waiting: ["{n} before it", "앞에 {n}개"],
  starting: ["Starting…", "시작하는 중…"],
  step: ["Step {n} of {total}", "{total}단계 중 {n}"],
  left: ["about {time} left", "약 {time} 남음"],
  finishing: ["Finishing…", "마무리하는 중…"],
  stopping: ["Stopping…", "멈추는 중…"],
  cancel: ["Cancel", "취소"],
  failed: ["This one failed", "그리지 못했습니다"],
  cancelled: ["Cancelled.", "취소했습니다."],
  retry: ["Try again", "다시 시도"],
  dismiss: ["Dismiss", "닫기"],
  started: ["Drawing: {prompt}", "그리기 시작: {prompt}"],
  done: ["Finished: {prompt}", "완성: {prompt}"],
  of: ["Picture {n} of {total}", "{total}장 중 {n}번째"],
  gallery: ["Gallery", "갤러리"],
  filters: ["Filter the gallery", "갤러리 걸러 보기"],
  all: ["All", "전체"],
  fromWords: ["From words", "글에서"],
  fromPicture: ["From a picture", "그림에서"],
  allStyles: ["All styles", "모든 화풍"],
  search: ["Search", "검색"],
  noPictures: ["Your pictures will hang here.", "완성된 그림이 여기에 걸립니다."],
  noPicturesHint: ["Write what you want, choose a style and press Draw. Try one of these:", "원하는 것을 적고 화풍을 고른 뒤 그리기를 누르세요. 이렇게 시작해 보세요."],
  noMatch: ["No picture matches.", "맞는 그림이 없습니다."],
  clearFilters: ["Show all", "모두 보기"],
  loading: ["Loading…", "불러오는 중…"],
  gone: ["This picture is no longer there.", "이 그림은 더 이상 없습니다."],
  viewer: ["Picture", "그림"],
  previous: ["Newer picture", "더 새로운 그림"],
  next: ["Older picture", "더 오래된 그림"],
  shut: ["Close", "닫기"],
  zoomIn: ["Zoom in", "확대"],
  zoomOut: ["Zoom out", "축소"],
  fit: ["Fit", "맞춤"],
  compare: ["Compare", "전후 비교"],
  before: ["Before", "전"],
  after: ["After", "후"],
  wipe: ["How much of the picture before is shown", "이전 그림을 보이는 정도"],
  vary: ["Vary seed", "다른 시드로"],
  again: ["Again", "똑같이 다시"],
  edit: ["Edit", "설정 바꾸기"],
  asStart: ["Use as start", "시작 그림으로"],
  copy: ["Copy settings", "설정 복사"],
  copied: ["Settings copied.", "설정을 복사했습니다."],
  notCopied: ["The browser did not allow copying.", "브라우저가 복사를 허용하지 않았습니다."],
  download: ["Download", "내려받기"],
  withSettings: ["Its settings are inside.", "설정이 함께 들어 있습니다."],
  delete: ["Delete", "삭제"],
  deleteTitle: ["Delete this picture?", "이 그림을 삭제할까요?"],
  deleteText: ["It cannot be brought back.", "되돌릴 수 없습니다."],
  keep: ["Keep it", "그대로 두기"],
  deleted: ["Deleted.", "삭제했습니다."],
  queuedAgain: ["In the queue.", "대기열에 넣었습니다."],
  size: ["Size", "크기"],
  model: ["Model", "모델"],
  made: ["Made", "만든 때"],
  took: ["Took", "걸린 시간"],
  use: ["For", "용도"],
  lora: ["LoRA", "LoRA"],
  settingsTitle: ["Settings", "설정"],
  language: ["Language", "언어"],
  theme: ["Colours", "화면"],
  system: ["System", "시스템"],
  light: ["Light", "밝게"],
  dark: ["Dark", "어둡게"],
  key: ["API key", "API 키"],
  keyHint: ["Kept in this browser alone. “hwaga keys add NAME” makes one.", "이 브라우저에만 저장합니다. “hwaga keys add 이름”으로 만듭니다."],
  keyNeeded: ["This server asks for an API key. Enter yours to go on.", "이 서버에는 API 키가 필요합니다. 키를 입력해 주세요."],
  save: ["Save", "저장"],
  saved: ["Saved.", "저장했습니다."],
  server: ["Server", "서버"],
  queue: ["Queue", "대기열"],
  queueLine: ["{queued} waiting, {running} being drawn", "대기 {queued}, 그리는 중 {running}"],
  wait: ["A new job starts in about {time}", "새 작업은 약 {time} 뒤 시작"],
  waitNone: ["A new job starts at once", "새 작업은 바로 시작"],
  memory: ["Memory", "메모리"],
  memoryOf: ["{used} of {total}", "{total} 중 {used}"],
  front: ["Requests", "요청 처리"],
  worker: ["Drawing", "그리기"],
  plan: ["Memory plan", "메모리 계획"],
  phase_load: ["Load", "불러오기"],
  phase_text: ["Read the prompt", "프롬프트 읽기"],
  phase_caption: ["Prepare it", "다듬기"],
  phase_source: ["Read the picture", "그림 읽기"],
  phase_denoise: ["Draw", "그리기"],
  phase_decode: ["Finish", "마무리"],
  budget: ["Budget {size}", "한도 {size}"],
  plan_weights: ["Weights that stay", "머무는 가중치"],
  plan_brought: ["Weights that come and go", "오가는 가중치"],
  plan_work: ["Working", "작업"],
  plan_kept: ["LoRAs and prompts", "LoRA와 프롬프트"],
  plan_others: ["Other models", "다른 모델"],
  away: ["{size} away", "{size} 비움"],
  leaves: ["{model} gives up {size}", "{model}: {size} 비켜 줌"],
  gpuMemory: ["GPU", "GPU"],
  gpuLine: ["{used} used, {held} held", "사용 {used}, 확보 {held}"],
  version: ["Version {version}", "버전 {version}"],
  ready: ["Ready", "준비됨"],
  busy: ["{n} in line", "대기 {n}"],
  notReady: ["Starting up", "준비하는 중"],
  offline: ["No connection to the server. Trying again…", "서버와 연결이 끊겼습니다. 다시 연결하는 중…"],
  back: ["Connected again.", "다시 연결되었습니다."],
  refused_offline: ["The server cannot be reached. Your words are still here: try again in a moment.", "서버에 연결할 수 없습니다. 적은 내용은 그대로 있으니 잠시 뒤 다시 시도해 주세요."],
  refused_prompt_too_long: ["", "프롬프트가 너무 깁니다. 조금 줄여 주세요."],
  refused_rate_limited: ["", "요청이 너무 잦습니다. {seconds}초 뒤에 다시 시도해 주세요."],
  refused_queue_full: ["The queue is full. Try again in {seconds} s.", "대기열이 가득 찼습니다. {seconds}초 뒤에 다시 시도해 주세요."],
  refused_store_full: ["", "서버의 디스크가 가득 찼습니다."],
  refused_server_stopping: ["", "서버가 멈추는 중입니다. 잠시 뒤 다시 시도해 주세요."],
  refused_source_image: ["", "그림을 읽을 수 없습니다. PNG, JPEG, WebP로 저장해 주세요."],
  refused_invalid_api_key: ["This API key is not known here.", "알 수 없는 API 키입니다."],
  refused_unknown_job: ["It is no longer there.", "더 이상 없습니다."],
  avoid_text: ["Text", "글자"],
  avoid_people: ["People", "사람"],
  avoid_hands: ["Hands", "손"],
  avoid_logo: ["Logos", "로고"],
  avoid_clutter: ["Clutter", "어수선함"],
  avoid_blur: ["Blur", "흐림"],
  avoid_shadow: ["Shadows", "그림자"],
  exact: ["{size}", "{size}"],
};

export const changes = new EventTarget();

function stored() {
  try {
    return localStorage.getItem("hwaga.language");
  } catch {
    return null;
  }
}

let language = stored() || (navigator.language.toLowerCase().startsWith("ko") ? "ko" : "en");

export const current = () => language;

export function choose(chosen) {
  language = chosen;
  try {
    localStorage.setItem("hwaga.language", chosen);
  } catch {
    // It holds until the page is closed.
  }
  apply();
  changes.dispatchEvent(new Event("language"));
}

export function t(key, values = {}) {
  const text = WORDS[key][language === "ko" ? 1 : 0];
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Whether there are words for it in this language. */
export const known = (key) => key in WORDS && Boolean(t(key));

/** A title from the server, which has one for each language. */
export const titled = (entry) => entry.title[language] || entry.title.en || entry.name;

/** Puts the words in place that stand in the document itself. */
export function apply() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-t-label]")) {
    element.setAttribute("aria-label", t(element.dataset.tLabel));
    if (element.matches("button")) element.title = t(element.dataset.tLabel);
  }
  for (const element of document.querySelectorAll("[data-t-placeholder]")) {
    element.placeholder = t(element.dataset.tPlaceholder);
  }
}

const unit = (value, name, digits = 0) =>
  new Intl.NumberFormat(language, { style: "unit", unit: name, unitDisplay: "short", maximumFractionDigits: digits }).format(value);

export function duration(seconds) {
  if (seconds < 10) return unit(Math.max(seconds, 0.1), "second", seconds < 3 ? 1 : 0);
  if (seconds < 90) return unit(Math.round(seconds), "second");
  return unit(Math.round(seconds / 60), "minute");
}

export function bytes(number) {
  const giga = number / 2 ** 30;
  return giga >= 1 ? `${giga.toFixed(1)} GiB` : `${Math.round(number / 2 ** 20)} MiB`;
}

export const moment = (seconds) =>
  new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(new Date(seconds * 1000));
